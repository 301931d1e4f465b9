"""The backbone step: builds the tiny model, whose vocabulary comes from the training text, or composes the small one.

Other backbones are only named by a spec.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hba_ray.cluster.environment import install
from hba_ray.cluster.session import CONNECT_SECONDS
from hba_ray.errors import CheckpointError, EnvironmentMissing
from hba_ray.progress import progress
from hba_ray.specs import ExperimentSpec, fingerprint
from hba_ray.specs.sections.model import ModelSpec, model_folder, weights_of
from hba_ray.steps.base import Context, Draft, Result, StepKind
from hba_ray.steps.inputs import describe
from hba_ray.store.files import file_digest, folder_digests, from_json

_SETTINGS = TypeAdapter(dict[str, Any])
_WHOLE = "give the files of a whole Qwen2.5-Omni model"
_HUB_MEGABYTES = {"HuggingFaceTB/SmolLM2-135M-Instruct": 269, "openai/whisper-tiny.en": 151}
"""What the hub states as the size of the weights that `model.small` names by default."""


class BackboneSteps(StepKind[Result]):
    """Builds the tiny random model or composes the small one. Real backbones are only named by a spec, so they have no step."""

    name = "backbone"

    def plan(self, draft: Draft) -> None:
        """Nothing has to be made where the backbone is a folder or a hub id."""
        model = draft.spec.model
        if model.backbone == "tiny":
            what = f"tiny Qwen2.5-Omni, {model.tiny.layers} layers of {model.tiny.hidden}, random weights"
            draft.add(self, _identity(draft), what)
        if model.backbone == "small":
            what = f"small Qwen2.5-Omni of {' and '.join(_told(source, key) for key, source in _sources(model))}"
            draft.add(self, _identity(draft), what)

    def make(self, context: Context) -> Result:
        spec, folder = context.spec, context.folder / "model"
        seconds = spec.atlas.media.audio_seconds
        with progress("backbone", total=None):
            if spec.model.backbone == "small":
                from hba_ray.models.small import build_small

                language, speech = (weights_of(source, key) or source for key, source in _sources(spec.model))
                build_small(language, speech, folder, seed=spec.model.small.seed, audio_seconds=seconds)
            else:
                from hba_ray.models.tiny import build_tiny

                build_tiny(spec.model.tiny, folder, context.index.texts("train"), audio_seconds=seconds)
        return Result()


def _sources(model: ModelSpec) -> list[tuple[str, str]]:
    """Key and value of each source of the small model."""
    return [("model.small.language", model.small.language), ("model.small.speech", model.small.speech)]


def _told(source: str, key: str) -> str:
    """A source for people, with what will be fetched from the hub."""
    if weights_of(source, key) is not None:
        return source
    size = f"{_HUB_MEGABYTES[source]} MB" if source in _HUB_MEGABYTES else "of unknown size"
    return f"{source} (from the hub, {size}, unless it is in the cache)"


def identity(draft: Draft) -> str:
    """A fingerprint of the backbone's content, which enters the fingerprints of later steps.

    Raises:
        CheckpointError: the backbone is a folder that is not there.
    """
    return fingerprint(_identity(draft))


def _identity(draft: Draft) -> dict[str, Any]:
    return identity_of(draft, draft.spec.model.backbone, "model.backbone")


def identity_of(draft: Draft, name: str, where: str) -> dict[str, Any]:
    """JSON values that name a model: settings of the tiny one, digests of the files of a folder, or a hub id.

    Args:
        where: the key of the spec that names it.

    Raises:
        CheckpointError: it is a folder that is not there.
    """
    model = draft.spec.model
    if name == "tiny":
        seconds = draft.spec.atlas.media.audio_seconds
        return {
            "tiny": model.tiny.identity(),
            "atlas": draft["atlas"].fingerprint,
            "audio_seconds": seconds,
            **describe.prompt_identity(draft.spec),
        }
    memory = draft.storage.folder
    if name == "small":
        contents = {key.rpartition(".")[2]: _content(source, weights_of(source, key), memory) for key, source in _sources(model)}
        return {"small": {"seed": model.small.seed, **contents}, "audio_seconds": draft.spec.atlas.media.audio_seconds}
    return _content(name, model_folder(name, where), memory)


def _content(name: str, place: Path | None, memory: Path) -> dict[str, Any]:
    """What the weights of a model are, wherever they lie: digests, or the id on the hub where there is no place."""
    if place is None:
        return {"hub": name}
    return {"file": file_digest(place, memory=memory)} if place.is_file() else {"folder": folder_digests(place, memory=memory)}


def check_hub(spec: ExperimentSpec) -> None:
    """Asks the hub for the config of the backbone, so that a wrong id is refused before the first step and not after many retries.

    Where the files of its processor are here, the seconds of sound that it takes are compared with those that the spec asks for.

    Raises:
        CheckpointError: it is neither in the cache nor to be had.
        EnvironmentMissing: the package that asks is not installed.
        DataError: the settings of its processor are damaged.
        SpecError: it takes less sound than the spec asks for.
    """
    name = spec.model.backbone
    if name == "small":
        for key, source in _sources(spec.model):
            if weights_of(source, key) is None:
                _ask_hub(source)
    if name in ("tiny", "small"):
        return
    folder = model_folder(name, "model.backbone")
    if folder is None:
        _ask_hub(name)
    window = _audio_window(name, folder)
    if window and "audio" in spec.atlas.modalities:
        spec.atlas.media.check_window(window, name)


def _audio_window(name: str, folder: Path | None) -> float | None:
    """Seconds of sound that the feature extractor of a backbone takes; None where its files are not on this machine or do not say."""
    for file in ("processor_config.json", "preprocessor_config.json"):
        path = folder / file if folder else _cached(name, file)
        if path and path.is_file():
            text = path.read_text("utf-8", errors="replace")
            settings = from_json(_SETTINGS, text, where=str(path), what="not a processor's settings", way_out=_WHOLE)
            own = settings.get("feature_extractor")
            seconds = (own if isinstance(own, dict) else settings).get("chunk_length")
            if isinstance(seconds, int | float):
                return float(seconds)
    return None


def _cached(name: str, file: str) -> Path | None:
    """A file of a model that was fetched from the hub before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file)
    return Path(found) if isinstance(found, str) else None


@lru_cache
def _ask_hub(name: str) -> None:
    """Asks once a process, however many trials have this backbone."""
    if find_spec("huggingface_hub") is None:
        raise EnvironmentMissing("model.backbone", "huggingface_hub, which fetches models, is not installed", install("train"))
    import httpx
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=CONNECT_SECONDS)
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as cause:
        reason = (str(cause) or type(cause).__name__).strip().splitlines()[0]
        way_out = "check the id and the network (HF_HUB_OFFLINE must not be set), or give a local folder"
        raise CheckpointError("model.backbone", f"'{name}' cannot be fetched from the hub: {reason}", way_out) from None
