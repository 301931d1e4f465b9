"""Prompts that a user may replace by a file: one of ours by its name, or a YAML file of the same form."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError

from hba_ray.errors import SpecError
from hba_ray.specs.base import Spec

Prompts = TypeVar("Prompts", bound=Spec)


def load_prompt_file(kind: type[Prompts], name: str, *, key: str, built_in: Mapping[str, str]) -> Prompts:
    """
    Args:
        kind: what the file holds.
        name: one of ours, or the path of a file.
        key: of the spec that names it.
        built_in: ours, name -> file from the package's folder.

    Raises:
        SpecError: no such file, not YAML, or a field is missing, unknown or not what it should be.
    """
    where = f"{key}={name}"
    source = files("hba_ray") / built_in[name] if name in built_in else Path(name).expanduser()
    way_out = f"give {', '.join(built_in)} or a YAML file in the form of hba_ray/{next(iter(built_in.values()))}"
    try:
        raw = yaml.safe_load(source.read_text(encoding="utf-8"))
    except OSError as cause:
        raise SpecError(where, f"cannot be read: {cause.strerror}", way_out) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as cause:
        raise SpecError(where, f"is not YAML: {' '.join(str(cause).split())}", way_out) from None
    try:
        return kind.model_validate(raw)
    except ValidationError as cause:
        defects = "; ".join(f"{'.'.join(map(str, error['loc'])) or 'file'}: {error['msg']}" for error in cause.errors())
        raise SpecError(where, defects, way_out) from None
