"""What a finished step knows of its own files: the size and the digest of each, and from what state of which steps it was made.

Both lie in the step's `done.json`, as relative names, so a storage may be moved. A file that is gone or has another size is
found whenever the step's result is read; other bytes of the same number are found when a later step reads the file for the
first time, and by `hba runs verify`. A step whose sources have been made again with other content since is outdated.
"""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hba_ray.errors import DataError, EnvironmentMissing
from hba_ray.specs import fingerprint
from hba_ray.store.files import GONE, file_digests, stamp
from hba_ray.store.folders import DO_AGAIN, DONE, FILES, MADE_FROM, done
from hba_ray.store.mirror import mirror_of

LOGS = "logs"
"""Folder of a step, or of a run, in which Ray keeps the logs of its processes."""
UNKNOWN = "unknown"
"""The state of a step that lists no files."""


@dataclass(frozen=True)
class KnownFile:
    """A file as it was when its step was finished.

    Attributes:
        size: bytes.
        sha256: the first half of its digest.
    """

    size: int
    sha256: str


@dataclass(frozen=True)
class Damage:
    """A file of a finished step that is not what it was.

    Attributes:
        file: its path within the folder of the step.
        what: what is wrong with it.
    """

    file: str
    what: str


_KNOWN = TypeAdapter(dict[str, KnownFile])
_SOURCES = TypeAdapter(dict[str, str])


def list_files(folder: Path, *, without: Collection[str], memory: Path | None) -> dict[str, dict[str, Any]]:
    """Name -> size and digest, as JSON values, of all files that a step has made.

    Hidden files, such as locks and drafts, are none of them; logs, which may grow later, neither.

    Args:
        without: names of folders in which the step keeps what it goes on from when it is interrupted.
        memory: folder that remembers digests; see `store.files`.
    """
    names = sorted(_names(folder, {*without, LOGS, DONE}))
    digests = file_digests([folder / name for name in names], memory=memory)
    return {name: asdict(KnownFile((folder / name).stat().st_size, digest)) for name, digest in zip(names, digests, strict=True)}


def _names(folder: Path, without: Collection[str]) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        is_top = Path(place) == folder
        left_out = without if is_top else ()
        folders[:] = [name for name in folders if not name.startswith(".") and name not in left_out]
        yield from (Path(place, name).relative_to(folder).as_posix() for name in files if name[0] != "." and name not in left_out)


def known_files(folder: Path, facts: Mapping[str, Any]) -> dict[str, KnownFile] | None:
    """The files that a finished step lists in its `done.json`; None where a former version, which listed none, finished it.

    Raises:
        DataError: the list is damaged.
    """
    if FILES not in facts:
        return None
    known = _read(_KNOWN, folder, facts, FILES)
    for name in known:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(
                str(folder / DONE), f"is damaged: it lists {name!r}, which is not in the folder", DO_AGAIN, reason="corrupt file"
            )
    return known


def damages(folder: Path, known: Mapping[str, KnownFile], *, content: bool = False, memory: Path | None = None) -> Iterator[Damage]:
    """The files that are not what they were: gone, of another size or, where that is asked for, of other bytes.

    Args:
        content: whether to read the files.
        memory: folder that remembers digests, so that a file is read once; None reads all of them.
    """
    whole = []
    for name, file in known.items():
        try:
            status = os.stat(folder / name)
        except OSError as cause:
            if mirror_of(folder) is not None:  # it is in the bucket, and looked at when it is fetched
                continue
            yield Damage(name, "is gone" if isinstance(cause, FileNotFoundError) else f"cannot be read: {cause.strerror}")
            continue
        if not (folder / name).is_file():
            yield Damage(name, "is no file any more")
        elif status.st_size != file.size:
            yield Damage(name, f"has {status.st_size} bytes, and had {file.size} when the step was finished")
        else:
            whole.append(name)
    if content:
        yield from _changed(folder, {name: known[name].sha256 for name in whole}, memory)


def check_files(folder: Path, facts: Mapping[str, Any], step: str, *, only: str | None, content: bool, memory: Path | None) -> None:
    """Refuses a finished step whose files are not what they were.

    Args:
        facts: its `done.json`.
        step: its name, for the error.
        only: look at this file alone.
        content, memory: as in `damages`. Of a storage in a bucket, files are brought here to be read; otherwise their being listed
            must do.

    Raises:
        DataError: names the first such file, and offers to do the step again.
    """
    known = known_files(folder, facts)
    if (mirror := mirror_of(folder)) is not None and known is not None:
        if not content:
            return
        chosen = known if only is None else {only: known[only]} if only in known else {}
        mirror.fetch(folder, {name: (file.size, file.sha256) for name, file in chosen.items()})
    if known is None:  # a former version finished it
        found = [] if only is None or (folder / only).is_file() else [Damage(only, "is gone")]
    elif only is not None and only not in known:
        found = [Damage(only, "is none of the files that the step was finished with")]
    else:
        found = list(damages(folder, known if only is None else {only: known[only]}, content=content, memory=memory))
    if found:
        more = f"; {len(found) - 1} more files of the step are damaged" if len(found) > 1 else ""
        what = f"{found[0].what}; the finished step '{step}' made it{more}"
        way_out = f"do the step again: give `hba run` the same spec and overrides and --redo {shlex.quote(step)}"
        raise DataError(str(folder / found[0].file), what, way_out, reason="corrupt file")


def first_damage(folder: Path) -> Damage | None:
    """The first file of a finished step that is gone or has another size; None where all are there, or the step is not done.

    Of a storage in a bucket files are looked at when they are fetched.
    """
    facts = done(folder)
    known = None if facts is None or mirror_of(folder) is not None else known_files(folder, facts)
    return next(damages(folder, known), None) if known else None


def keep(folder: Path) -> None:
    """Uploads what an unfinished step has made, so that it can go on from there on another machine; nothing where no bucket is used.

    Args:
        folder: of the step, or one in it.

    Raises:
        EnvironmentMissing: another process has taken over the step.
    """
    if (mirror := mirror_of(folder)) is not None:
        step = mirror.step_of(folder)
        mirror.keep(step, list_files(step, without=(), memory=None))


@contextmanager
def kept(folder: Path, mark: Path, *, every_seconds: float = 2.0) -> Iterator[None]:
    """Keeps an unfinished step, for the time of the block, whenever `mark` was written, which other processes do after a checkpoint.

    Where a checkpoint is removed while it is uploaded, or the storage does not answer, it is tried again.
    """
    if mirror_of(folder) is None:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        seen = stamp(mark)
        while not ended.wait(every_seconds):
            if (now := stamp(mark)) not in (seen, GONE):
                with suppress(FileNotFoundError, EnvironmentMissing):
                    keep(folder)
                    seen = now

    thread = threading.Thread(target=watch, name=f"keep {folder.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _changed(folder: Path, known: Mapping[str, str], memory: Path | None) -> Iterator[Damage]:
    for name, digest in zip(known, file_digests([folder / name for name in known], memory=memory), strict=True):
        if digest != known[name]:
            yield Damage(name, "holds other bytes than when the step was finished")


def state_of(facts: Mapping[str, Any], *, without: Collection[str]) -> str:
    """A name for the content of a finished step's files.

    Args:
        facts: its `done.json`.
        without: files that tell of the work and do not enter the work of others, such as a log with times.
    """
    if FILES not in facts:
        return UNKNOWN
    return fingerprint({name: file for name, file in facts[FILES].items() if name not in without})


def outdated_by(folder: Path, facts: Mapping[str, Any], *, without: Collection[str]) -> list[str]:
    """Names of the folders of finished steps that a step was made from, and that hold something else by now.

    Raises:
        DataError: a mark is damaged.
    """
    sources = _read(_SOURCES, folder, facts, MADE_FROM) if MADE_FROM in facts else {}
    now = {name: done(folder.parent / name) for name in sources}
    return [name for name, state in sources.items() if (said := now[name]) is not None and state_of(said, without=without) != state]


def _read(kind: TypeAdapter[Any], folder: Path, facts: Mapping[str, Any], key: str) -> Any:
    try:
        return kind.validate_python(facts[key])
    except ValidationError as cause:
        error = cause.errors()[0]
        place = ".".join(map(str, (key, *error["loc"])))
        raise DataError(str(folder / DONE), f"is damaged: {place}: {error['msg']}", DO_AGAIN, reason="corrupt file") from cause
