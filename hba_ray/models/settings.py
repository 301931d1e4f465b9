"""The settings that a checkpoint was trained with, which it has to be run with, too.

Folders that our steps write hold them in `settings.json`. Checkpoints in the layout of the released code hold none: the layout
itself implies what that code does. Folders of former versions of hba_ray say nothing, so the spec's values stand.

A spec takes over the settings of the checkpoints that it names (`settled`). One that says otherwise is refused, since the same
weights in another forward pass are another model. Neither torch nor weights are loaded here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from hba_ray.errors import CheckpointError, SpecError
from hba_ray.models.manifests import read_manifest
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.base import put_at, value_at
from hba_ray.specs.wording import load_system_prompt

SETTINGS, SYSTEM_PROMPT = "settings.json", "system_prompt.txt"
"""Files in the folder of a checkpoint: its settings, and the text of the system turn, where the spec gave one."""
FORMAT = 1
FORWARD = {"heads_read": "h^(L-1), before the last layer and the final norm", "pooling": "masked mean over the prompt"}
"""What is the same in all checkpoints that this version reads."""

_MEDIA = tuple(
    f"atlas.media.{name}"
    for name in ("audio_seconds", "video_frames", "video_pixels", "video_min_pixels", "image_pixels", "image_min_pixels")
)
_USUAL = ("sft.mode", *_MEDIA)
_IMPLIED_OF_MODEL = ("model.media_to_backbone", "model.lora.scope", "model.prompt_layout")
_IMPLIED_OF_ADAPTERS = ("bam.outer_activation", "bam.acoustic_scale", "bam.norm", "bam.decoder_injection")
OF_MODEL = ("model.train", "model.lora.rank", "model.lora.alpha", *_IMPLIED_OF_MODEL, *_USUAL)
"""Keys of a spec that an SFT model is run with."""
OF_ADAPTERS = (*_IMPLIED_OF_ADAPTERS, "bam.streams", "bam.hidden", "bam.acoustic_hidden", "bam.raw_media")
"""Keys of a spec that adapters are run with, besides those of their model."""


@dataclass(frozen=True)
class Settings:
    """The settings of one checkpoint.

    Attributes:
        folder: of the checkpoint.
        key: of the spec that names it.
        layout: in which the model was published; `released` also where one of our own steps has copied it.
        values: dotted key -> value, as plain JSON.
        usual: keys whose value is only usual in the layout; a spec may state another.
        system_prompt: file with the system turn; None where there was none, or where nothing says which.
    """

    folder: Path
    key: str
    layout: Literal["hba_ray", "released"]
    values: Mapping[str, Any]
    usual: frozenset[str] = frozenset()
    system_prompt: Path | None = None

    def in_words(self, spec: ExperimentSpec) -> str:
        """The settings that decide how the weights are run, as a spec would hold them, and what the spec states otherwise."""
        kinds = (*_IMPLIED_OF_MODEL, *_IMPLIED_OF_ADAPTERS)
        held = ", ".join(f"{key}={shown(self.values[key])}" for key in kinds if key in self.values)
        other = [key for key in self.values if key in self.usual and value_at(spec, key) != self.values[key]]
        return held + "".join(f"; {key} is usually {shown(self.values[key])}, here {shown(value_at(spec, key))}" for key in other)


def settled(spec: ExperimentSpec) -> ExperimentSpec:
    """The spec with the settings of the checkpoints that it names, wherever it states none itself.

    Raises:
        SpecError: it states others, or two checkpoints do not belong together; both values are named.
        CheckpointError: a file of settings is damaged, or of another version.
    """
    sources = sources_of(spec)
    _refuse_mixed(sources)
    adopted: dict[str, Any] = {}
    for source in sources:
        if source.layout == "released" and spec.compat == "paper" and _is_stated(spec, "compat"):
            raise _refused(source, "compat", "paper", "authors")
        for key, held in source.values.items():
            stated = value_at(spec, key)
            if stated == held or (key in source.usual and _is_stated(spec, key)):
                continue
            if _is_stated(spec, key):
                raise _refused(source, key, stated, held)
            if adopted.setdefault(key, held) != held:
                what = f"{source.folder} was trained with {key}={shown(held)}, another checkpoint of this spec with {shown(adopted[key])}"
                raise SpecError(source.key, what, "name checkpoints that were trained with the same settings")
        adopted |= _system_prompt(spec, source)
    if not adopted:
        return spec
    try:
        return _with(spec, adopted)
    except ValidationError as cause:
        error = cause.errors()[0]
        where = ".".join(map(str, error["loc"])) or "the spec"
        what = f"the settings of {' and '.join(str(source.folder) for source in sources)} do not fit: {error['msg']}"
        raise SpecError(where, what, "correct the spec, or name another checkpoint") from cause


def sources_of(spec: ExperimentSpec) -> tuple[Settings, ...]:
    """The settings of the checkpoints that a spec names, as far as those say or imply any.

    Raises:
        CheckpointError: a file of settings is damaged, or of another version.
    """
    found = []
    if "sft" in spec.stages and spec.sft.checkpoint is not None:
        found.append(_source(spec.sft.checkpoint, "sft.checkpoint", (*_IMPLIED_OF_MODEL, *_USUAL)))
    if "bam" in spec.stages:
        found += [_source(given, f"bam.checkpoints.{name}", _IMPLIED_OF_ADAPTERS) for name, given in spec.bam.checkpoints.items()]
    return tuple(source for source in found if source is not None)


def write_settings(folder: Path, spec: ExperimentSpec, *, adapters: bool = False) -> None:
    """Writes the settings of a spec into the folder of the checkpoint that it made or took.

    Args:
        adapters: the folder holds adapters, and not their model.
    """
    released = any(source.key == "sft.checkpoint" and source.layout == "released" for source in sources_of(spec))
    said: dict[str, Any] = {
        "format": FORMAT,
        "layout": "released" if released else "hba_ray",
        "compat": spec.compat,
        **FORWARD,
        "settings": {key: value_at(spec, key) for key in (*OF_MODEL, *(OF_ADAPTERS if adapters else ()))},
    }
    if spec.model.system_prompt is not None:
        text = load_system_prompt(spec.model.system_prompt)
        said["system_prompt"] = _digest(text)
        (folder / SYSTEM_PROMPT).write_bytes(text.encode())
    (folder / SETTINGS).write_text(json.dumps(said, indent=2) + "\n")


def read_settings(folder: Path, key: str) -> Settings | None:
    """The settings that a folder of ours holds; None where a former version of hba_ray wrote it.

    Args:
        key: of the spec that names the folder.

    Raises:
        CheckpointError: they are damaged, or of another version.
    """
    file = folder / SETTINGS
    if not file.exists():
        return None
    said = read_manifest(folder, SETTINGS)
    for name, value in {"format": FORMAT, **FORWARD}.items():
        if said.get(name) != value:
            raise CheckpointError(
                str(file), f"{name} is {said.get(name)!r}, and this version knows {value!r}", "use the version that wrote it"
            )
    values, layout, digest = said.get("settings"), said.get("layout"), said.get("system_prompt")
    if layout not in ("hba_ray", "released") or not isinstance(values, dict):
        raise CheckpointError(str(file), "is damaged: its layout or its settings are missing", "use another checkpoint")
    if unknown := sorted(values.keys() - {*OF_MODEL, *OF_ADAPTERS}):
        raise CheckpointError(str(file), f"holds '{unknown[0]}', which this version does not know", "use the version that wrote it")
    prompt = None if digest is None else folder / SYSTEM_PROMPT
    if prompt is not None and (not prompt.is_file() or _digest(load_system_prompt(str(prompt))) != digest):
        raise CheckpointError(str(prompt), "is not the system turn that the model was trained with", "use another checkpoint")
    return Settings(folder, key, layout, values, system_prompt=prompt)


def is_ours(folder: Path) -> bool:
    """Whether a folder holds a checkpoint in the layout of this package."""
    return any((folder / name).is_file() for name in ("model.json", "adapters.json"))


def shown(value: Any) -> str:
    """A value as a spec would hold it.

    >>> shown(False), shown("l2"), shown(None)
    ('false', 'l2', 'null')
    """
    return value if isinstance(value, str) else json.dumps(value)


def _source(given: str, key: str, implied: Sequence[str]) -> Settings | None:
    """The settings of a folder; None where they are not known, or where planning its step will say that it is not there."""
    folder = Path(given).expanduser()
    if is_ours(folder):
        return read_settings(folder, key)
    if not folder.is_dir():
        return None
    released = ExperimentSpec.model_validate({"name": "released", "compat": "authors", "atlas": {"source": "toy"}})
    return Settings(folder, key, "released", {name: value_at(released, name) for name in implied}, usual=frozenset(_USUAL))


def _refuse_mixed(sources: Sequence[Settings]) -> None:
    """Refuses released adapters on a model that is known to be trained here.

    Raises:
        SpecError: as said.
    """
    layouts = {source.key: source for source in sources}
    model = layouts.get("sft.checkpoint")
    for source in sources:
        if model is not None and source is not model and source.layout == "released" and model.layout == "hba_ray":
            what = f"{source.folder} holds released adapters, and sft.checkpoint={model.folder} a model that was trained here"
            raise SpecError(source.key, what, "give the released model that they were trained on as sft.checkpoint")


def _refused(source: Settings, key: str, stated: Any, held: Any) -> SpecError:
    how = "was trained with" if source.layout == "hba_ray" else "is in the layout of the released code, which runs it with"
    what = f"is {shown(stated)}, and the checkpoint {source.folder} ({source.key}) {how} {shown(held)}"
    return SpecError(key, what, "leave the key out, so that the checkpoint's own setting is used, or name another checkpoint")


def _system_prompt(spec: ExperimentSpec, source: Settings) -> dict[str, str]:
    """The file of a checkpoint's system turn, where the spec gives none.

    Raises:
        SpecError: the spec gives another text.
    """
    stated = spec.model.system_prompt
    if source.system_prompt is None:
        return {}
    if stated is None:
        return {"model.system_prompt": str(source.system_prompt)}
    if load_system_prompt(stated) != load_system_prompt(str(source.system_prompt)):
        raise _refused(source, "model.system_prompt", stated, str(source.system_prompt))
    return {}


def _is_stated(spec: ExperimentSpec, key: str) -> bool:
    """Whether the spec itself, or its `compat`, states the value at a dotted key."""
    section: Any = spec
    for name in key.split("."):
        if not isinstance(section, BaseModel) or name not in section.model_fields_set:
            return False
        section = getattr(section, name)
    return True


def _with(spec: ExperimentSpec, values: Mapping[str, Any]) -> ExperimentSpec:
    """The spec with these values, by dotted key.

    Raises:
        ValidationError: they are not valid, or do not fit the others.
    """
    raw = spec.model_dump(mode="json", exclude_unset=True)
    for key, value in values.items():
        put_at(raw, key, value)
    return ExperimentSpec.model_validate(raw)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
