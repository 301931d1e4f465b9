"""The backbone step: builds the tiny model, whose vocabulary comes from the training text, or composes the small one.

Other backbones are only named by a spec.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hba_ray.cluster.environment import install
from hba_ray.cluster.machine import cached_file
from hba_ray.cluster.session import CONNECT_SECONDS
from hba_ray.errors import CheckpointError, EnvironmentMissing
from hba_ray.models.size.published import MODELS
from hba_ray.progress import progress
from hba_ray.specs import ExperimentSpec, fingerprint
from hba_ray.specs.sections.model import MADE, ModelSpec, model_folder, weights_of
from hba_ray.steps.base import Context, Draft, Result, StepKind
from hba_ray.steps.inputs import describe
from hba_ray.steps.needs.base import Need
from hba_ray.steps.needs.size import Weights
from hba_ray.store.files import file_digest, folder_digests, from_json

_SETTINGS = TypeAdapter(dict[str, Any])
_WHOLE = "give the files of a whole Qwen2.5-Omni model"


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

    def needs(self, spec: ExperimentSpec) -> Iterable[Need]:
        return [Weights(key, source, place="lead") for key, source in _sources(spec.model)] if spec.model.backbone == "small" else []

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
    size = f"{1000 * MODELS[source].gigabytes:.0f} MB" if source in MODELS else "of unknown size"
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
    return draft.content(lambda: _content(name, model_folder(name, where), memory), {"not there yet": name})


def _content(name: str, place: Path | None, memory: Path) -> dict[str, Any]:
    """What the weights of a model are, wherever they lie: digests, or the id on the hub where there is no place."""
    if place is None:
        return {"hub": name}
    return {"file": file_digest(place, memory=memory)} if place.is_file() else {"folder": folder_digests(place, memory=memory)}


def digest_checkpoint(draft: Draft, name: str, key: str) -> list[list[str]]:
    """Name and digest of each file in the folder of a checkpoint, which a key of the spec names.

    Raises:
        CheckpointError: it is no folder.
    """
    folder = Path(name).expanduser()

    def read() -> list[list[str]]:
        if not folder.is_dir():
            raise CheckpointError(key, f"no such folder: {name}", "give the folder of a checkpoint")
        return folder_digests(folder, memory=draft.storage.folder)

    return draft.content(read, [[name, "not there yet"]])


def needs_weights(spec: ExperimentSpec) -> list[Need]:
    """The weights of a backbone that is only named by a spec."""
    return [] if spec.model.backbone in MADE else [Weights("model.backbone", spec.model.backbone)]


def check_window(spec: ExperimentSpec) -> None:
    """Compares the seconds of sound that the backbone takes with those that the spec asks for, where its processor's files are here.

    Raises:
        DataError: the settings of its processor are damaged.
        CheckpointError: it is a folder that is not there.
        SpecError: it takes less sound than the spec asks for.
    """
    name = spec.model.backbone
    if name in MADE:
        return
    window = _audio_window(name, model_folder(name, "model.backbone"))
    if window and "audio" in spec.atlas.modalities:
        spec.atlas.media.check_window(window, name)


def _audio_window(name: str, folder: Path | None) -> float | None:
    """Seconds of sound that the feature extractor of a backbone takes; None where its files are not on this machine or do not say."""
    for file in ("processor_config.json", "preprocessor_config.json"):
        path = folder / file if folder else cached_file(name, file)
        if path and path.is_file():
            text = path.read_text("utf-8", errors="replace")
            settings = from_json(_SETTINGS, text, where=str(path), what="not a processor's settings", way_out=_WHOLE)
            own = settings.get("feature_extractor")
            seconds = (own if isinstance(own, dict) else settings).get("chunk_length")
            if isinstance(seconds, int | float):
                return float(seconds)
    return None


@lru_cache
def ask_hub(name: str, where: str = "model.backbone") -> None:
    """Asks the hub for the config of a model, once a process, however many trials have it.

    Args:
        where: the key of the spec that names it.

    Raises:
        CheckpointError: it is neither in the cache nor to be had.
        EnvironmentMissing: the package that asks is not installed.
    """
    if find_spec("huggingface_hub") is None:
        raise EnvironmentMissing(where, "huggingface_hub, which fetches models, is not installed", install("train"))
    import httpx
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if cached_file(name, "config.json"):
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=CONNECT_SECONDS)
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as cause:
        reason = (str(cause) or type(cause).__name__).strip().splitlines()[0]
        way_out = "check the id and the network (HF_HUB_OFFLINE must not be set), or give a local folder"
        raise CheckpointError(where, f"'{name}' cannot be fetched from the hub: {reason}", way_out) from None
