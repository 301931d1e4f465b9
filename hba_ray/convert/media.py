"""Finds the clips of a corpus, and passes over what macOS leaves in archives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hba_ray.data.media.files import open_container, opened
from hba_ray.errors import DataError

NOT_ONLINE = "clip not available"
"""Reason for leaving out rows whose clip nobody can fetch any more."""


def first_folder(root: Path, candidates: Sequence[str]) -> Path | None:
    """The first of the candidate folders under `root` that is there."""
    return next((root / name for name in candidates if (root / name).is_dir()), None)


def first_file(root: Path, candidates: Sequence[str]) -> Path | None:
    """The first of the candidate files under `root` that is there."""
    return next((root / name for name in candidates if (root / name).is_file()), None)


def needed_file(root: Path, candidates: Sequence[str]) -> Path:
    """As `first_file`.

    Raises:
        DataError: none is there.
    """
    found = first_file(root, candidates)
    if found is None:
        way_out = "atlas.root is the folder of the dataset's public files"
        raise DataError(str(root), f"holds no {' or '.join(candidates)}", way_out, reason="missing file")
    return found


def files_below(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """The files of these suffixes, in any case, at any depth, in the order of their paths; not those that macOS adds."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and not of_macos(path.relative_to(folder)) and path.is_file():
            yield path


def of_macos(path: Path) -> bool:
    """Whether a path within an archive is one of those that macOS adds to archives.

    >>> of_macos(Path("301_P/._301_TRANSCRIPT.csv")), of_macos(Path("__MACOSX/a.wav")), of_macos(Path("a.wav"))
    (True, True, False)
    """
    return path.name.startswith("._") or "__MACOSX" in path.parts


def video_and_audio(clip: Path, where: str) -> dict[str, tuple[Path, ...]]:
    """The media of a row whose video holds its sound."""
    path = clip_file(clip, where)
    return {"video": (path,), "audio": (path,)}


def clip_file(path: Path, where: str) -> Path:
    """The absolute path of a clip that is there.

    Raises:
        DataError: the file is not there, no regular file, or in a folder that must not be read; or no file has so long a name.
    """
    try:
        if not path.is_file():
            what, reason = ("is no regular file", "not a file") if path.exists() else ("is not there", "missing file")
            raise DataError(where, f"{path} {what}", "restore the clip", reason=reason)
    except OSError as cause:
        raise DataError(where, f"{path} cannot be looked at: {cause.strerror}", "restore the clip", reason="missing file") from None
    return path.absolute()


def sounding(clip: Path, where: str) -> dict[str, tuple[Path, ...]]:
    """The media of a row whose video may be silent: its sound too, where the file has any.

    Raises:
        BadMedia: the file cannot be read.
    """
    with opened(clip, "video", where) as (file, _), open_container(file) as container:
        return {"video": (clip,), "audio": (clip,)} if container.streams.audio else {"video": (clip,)}
