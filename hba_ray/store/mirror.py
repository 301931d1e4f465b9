"""A storage in a bucket, and the folder of this machine in which its runs and steps are worked on.

Everything works in a folder of this machine as it works in a storage that is a folder; this module carries files between the two.
`store/scratch.py` says which folder that is.

    <address>/steps/<step>/files/<digest>    what a step has made, by content: nothing is ever overwritten
    <address>/done/<step>.json               a finished step's `done.json`, written last, and only where there is none; it names the digests
    <address>/steps/<step>/generation        written when a step is to be done from its beginning: half of a former one is of no use
    <address>/steps/<step>/unfinished.json   the files of a step at its last checkpoint, by name and digest
    <address>/<run>/...                      files of a run, as in a folder; so are shared tables of descriptors and verdicts
    <address>/<run>/ledger/<event>.json      a line of the run's ledger
    <address>/leases/<what>.json             who works on it (`store/leases.py`)

A finished step's files are fetched when something reads them, and stay on this machine until the room is needed for others. Files that
change are exchanged while their folder's lease is held: read when it is taken, written when it is given back.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from hba_ray.errors import EnvironmentMissing, HbaError
from hba_ray.progress import progress
from hba_ray.store.bucket import Bucket, Listed, Version, side_by_side
from hba_ray.store.leases import Lease, leased
from hba_ray.store.scratch import SEEN, Scratch, address_of, alone, root_of

EVENTS = "ledger"
"""Folder of a run with a file for each line of its ledger, by time."""
OWN_TO_A_MACHINE = (".*", "logs", "tune", "pending", "model-*", "ledger", "ledger.jsonl")
"""Patterns of files and folders of a run, or of a table, that stay on the machine that made them; events were written by themselves."""
MANY_BYTES = 1 << 30
"""From here on a bar is shown: fetching takes seconds."""
MARK_SECONDS = 2.0
"""For how long a listing of finished steps is believed."""
_SYNCED, _KEPT, GENERATION = ".synced.json", ".kept", ".generation"
"""Hidden files of a folder here: versions and stamps of files that were exchanged; the snapshot that unfinished files go on from; and
what the bucket's `generation` held when the files were begun."""


def mirror_of(path: Path) -> Mirror | None:
    """The storage whose folder here holds a path; None where that is a folder like any other."""
    root = root_of(path)
    return None if root is None else _mirror(root, os.getpid())


@cache
def _mirror(root: Path, process: int) -> Mirror:
    """`process`: a fork must not go on with the connections of its parent."""
    return Mirror(root, Bucket(address_of(root)))


class Mirror:
    """A storage in a bucket, and its folder here.

    Attributes:
        root: the folder.
    """

    def __init__(self, root: Path, bucket: Bucket):
        self.root, self.bucket = root, bucket
        self._marks: dict[str, Listed] = {}
        self._marks_until = 0.0
        self._snapshots: dict[str, Version | None] = {}
        self._scratch = Scratch(root)

    def check(self) -> None:
        """Makes sure that the bucket is there and refuses what it must refuse.

        Raises:
            EnvironmentMissing: it does not answer, or knows no conditional writes, so that two processes would do one step.
        """
        key, way_out = f"leases/probe-{uuid.uuid4().hex}", "give a storage with conditional writes (If-None-Match, If-Match), or a folder"
        first = self.bucket.create(key, b"1")
        again = self.bucket.create(key, b"2")
        second = None if first is None else self.bucket.replace(key, b"3", first)
        stale = None if first is None else self.bucket.replace(key, b"4", first)
        self.bucket.delete([key])
        if again is not None or second is None or stale is not None:
            what = "it overwrites objects that it was told to leave alone" if again or stale else "it refuses conditional writes"
            raise EnvironmentMissing(self.bucket.address, f"{what}, so that two processes could work on one step", way_out)

    @contextmanager
    def claimed(self, folder: Path, *, wait_seconds: float, on_wait: Callable[[], None] | None) -> Iterator[Lease]:
        """Holds the lease of a run, a step or a table. For this time its files here are what the bucket holds, and this process's work.

        Raises:
            EnvironmentMissing: as `leases.leased`; or the lease was lost meanwhile, and others have written the folder's files.
        """
        with leased(self.bucket, f"leases/{self._key(folder)}.json", wait_seconds=wait_seconds, on_wait=on_wait) as lease:
            folder.mkdir(parents=True, exist_ok=True)
            self.look_again()
            if self._is_step(folder):
                self._resume(folder)
                yield lease
                return
            self.pull(folder)
            failed = True
            try:
                yield lease
                failed = False
            finally:
                with suppress(HbaError) if failed else nullcontext():  # the block's own error says more
                    self.push(folder)
            if folder.parent == self.root:  # a run has ended, and with it the use of its steps
                self._scratch.leave()

    # Finished steps

    def finished(self) -> dict[str, Listed]:
        """The names of the folders of all finished steps, and their marks."""
        if time.monotonic() > self._marks_until:
            listed = self.bucket.list("done/")
            self._marks = {key.removeprefix("done/").removesuffix(".json"): entry for key, entry in listed.items()}
            self._marks_until = time.monotonic() + MARK_SECONDS
        return self._marks

    def look_again(self) -> None:
        """Believes the last listing of finished steps no more."""
        self._marks_until = 0.0

    def refresh(self, mark: Path) -> None:
        """Makes a step's `done.json` here what the bucket holds; files of a former state go with their mark."""
        folder = mark.parent
        if not self._is_step(folder):
            return
        found = self.finished().get(folder.name)
        if found is None:
            mark.unlink(missing_ok=True)
            return
        if _is_seen(mark, found.etag):
            return
        with alone(folder):
            if _is_seen(mark, found.etag):  # another process of this machine was first, and may have fetched files
                return
            read = self.bucket.read(self._mark_key(folder))
            if read is None:  # it was removed since it was listed
                mark.unlink(missing_ok=True)
                return
            _empty(folder)
            mark.write_bytes(read[0])
            (folder / SEEN).write_text(read[1].etag or "")

    def finish(self, mark: Path, text: str, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Uploads a step's files and then its mark.

        Args:
            files: name -> `size` and `sha256`, as `done.json` lists them.

        Raises:
            EnvironmentMissing: another process has finished the step meanwhile.
        """
        folder = mark.parent
        there = self._upload(folder, files)
        with alone(folder):
            written = self.bucket.create(self._mark_key(folder), text.encode())
            if written is None:
                what, way_out = "another process has finished this step meanwhile", "run the same command, which goes on from there"
                raise EnvironmentMissing(f"{self.bucket.address}/{self._mark_key(folder)}", what, way_out)
            self.look_again()
            mark.write_text(text, encoding="utf-8")
            (folder / SEEN).write_text(written.etag or "")
        self._scratch.use(folder)
        used = {self._file_key(folder, file["sha256"]) for file in files.values()}
        self.bucket.delete([*(there - used), *([self._snapshot_key(folder)] if self._snapshots.pop(folder.name, None) else [])])

    def reopen(self, folder: Path) -> None:
        """Removes a step's mark, so that it is done again."""
        self.look_again()
        if folder.name in self.finished():
            self.bucket.delete([self._mark_key(folder)])
            self.look_again()

    def forget(self, folder: Path) -> None:
        """Removes what a step has left in the bucket, its mark first, so that it is done from its beginning."""
        self.reopen(folder)
        self._snapshots[folder.name] = None
        self.bucket.delete(self.bucket.list(f"{self._key(folder)}/"))
        generation = uuid.uuid4().hex.encode()
        self.bucket.create(self._generation_key(folder), generation)
        (folder / GENERATION).write_bytes(generation)

    def fetch(self, folder: Path, files: Mapping[str, tuple[int, str]]) -> None:
        """Brings a finished step's files here that are not here yet.

        Args:
            files: name -> size and digest.

        Raises:
            DataError: an object is gone, or holds other bytes.
        """
        self._scratch.use(folder)
        missing = {name: file for name, file in files.items() if _size(folder / name) != file[0]}
        if missing:
            self._scratch.make_room(sum(size for size, _ in missing.values()))
            self._download({folder / name: (self._file_key(folder, digest), digest, size) for name, (size, digest) in missing.items()})

    # Unfinished steps

    def keep(self, folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Uploads the files of a step at a checkpoint, so that it can go on from there on another machine.

        Args:
            files: as in `finish`.

        Raises:
            EnvironmentMissing: another process has taken over the step.
        """
        there = self._upload(folder, files)
        name, snapshot = self._snapshot_key(folder), json.dumps({"id": uuid.uuid4().hex, "files": files}).encode()
        former = self._snapshots.get(folder.name)
        written = self.bucket.create(name, snapshot) if former is None else self.bucket.replace(name, snapshot, former)
        if written is None:
            what = "another process has taken over this step, and its checkpoint is newer"
            raise EnvironmentMissing(f"{self.bucket.address}/{name}", what, "run the same command, which goes on from there")
        self._snapshots[folder.name] = written
        (folder / _KEPT).write_bytes(snapshot)
        self.bucket.delete(there - {self._file_key(folder, file["sha256"]) for file in files.values()})

    def _resume(self, folder: Path) -> None:
        """Puts a step's files here back to its last checkpoint, unless they are that or what became of it on this machine."""
        generation, known = self.bucket.read(self._generation_key(folder)), folder / GENERATION
        if generation is not None and not (known.exists() and known.read_bytes() == generation[0]):
            _empty(folder)  # what is here is of before the step was to be done from its beginning
            (folder / _KEPT).unlink(missing_ok=True)
            known.write_bytes(generation[0])
        found = self.bucket.read(self._snapshot_key(folder))
        self._snapshots[folder.name] = None if found is None else found[1]
        kept = folder / _KEPT
        if found is None or (kept.exists() and kept.read_bytes() == found[0]):
            return
        _empty(folder)
        self.fetch(folder, {name: (file["size"], file["sha256"]) for name, file in json.loads(found[0])["files"].items()})
        kept.write_bytes(found[0])

    # Folders whose files change

    def pull(self, folder: Path, below: str = "") -> None:
        """Brings those files here that the bucket holds in another version than was last exchanged; events become a ledger again."""
        prefix, synced = "" if folder == self.root else f"{self._key(folder)}/", _synced(folder)
        listed = {key.removeprefix(prefix): entry for key, entry in self.bucket.list(prefix + below).items()}
        known = {name: synced[name]["etag"] for name in synced if (folder / name).exists()}
        names = [name for name, entry in listed.items() if known.get(name) != entry.etag]
        versions = self._download({folder / name: (prefix + name, None, listed[name].size) for name in names})
        if names:
            _note(folder, synced | {name: _exchanged(folder / name, version) for name, version in zip(names, versions, strict=True)})
        if any(name.startswith(f"{EVENTS}/") for name in names):
            _write(folder / "ledger.jsonl", b"".join(file.read_bytes() for file in sorted((folder / EVENTS).glob("*.json"))))

    def push(self, folder: Path) -> None:
        """Writes those files to the bucket that have changed here since they were last exchanged.

        Raises:
            EnvironmentMissing: another process has written one of them since: it has taken over this one's work.
        """
        synced, changed = _synced(folder), {}
        for path in _shared_files(folder):
            name = path.relative_to(folder).as_posix()
            if _stamp(path) != synced.get(name, {}).get("stamp"):
                changed[name] = path
        versions = side_by_side(lambda name: self._write(folder, name, synced.get(name)), changed)
        if changed:
            _note(folder, synced | dict(zip(changed, versions, strict=True)))

    def _write(self, folder: Path, name: str, synced: Mapping[str, Any] | None) -> dict[str, Any]:
        path, key = folder / name, f"{self._key(folder)}/{name}"
        stamp, content = _stamp(path), path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if synced is not None and synced["sha256"] == digest:  # it was written again, with the same content
            return {**synced, "stamp": stamp}
        seen = None if synced is None else Version(synced["etag"], synced["generation"])
        written = self.bucket.create(key, content) if seen is None else self.bucket.replace(key, content, seen)
        if written is None:
            what = "another process has written it meanwhile, since this one gave no sign for long"
            raise EnvironmentMissing(f"{self.bucket.address}/{key}", what, "run the same command again")
        return {"etag": written.etag, "generation": written.generation, "stamp": stamp, "sha256": digest}

    # Ledgers

    def add_event(self, run: Path, line: bytes) -> None:
        """Adds a line to a run's ledger; it is in the bucket when this returns."""
        event = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
        self.bucket.create(f"{self._key(run)}/{EVENTS}/{event}", line)

    # Keys

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def step_of(self, folder: Path) -> Path:
        """The folder of the step that a folder is, or is in."""
        return next(place for place in (folder, *folder.parents) if self._is_step(place))

    def _is_step(self, folder: Path) -> bool:
        return folder.parent == self.root / "steps"

    def _mark_key(self, folder: Path) -> str:
        return f"done/{folder.name}.json"

    def _snapshot_key(self, folder: Path) -> str:
        return f"{self._key(folder)}/unfinished.json"

    def _generation_key(self, folder: Path) -> str:
        return f"{self._key(folder)}/generation"

    def _file_key(self, folder: Path, digest: str) -> str:
        return f"{self._key(folder)}/files/{digest}"

    def _download(self, wanted: Mapping[Path, tuple[str, str | None, int]]) -> list[Version]:
        """Fetches objects, with a bar where there is much to fetch.

        Args:
            wanted: file -> key, digest that its content must have or None, and bytes.
        """
        megabytes = sum(size for _, _, size in wanted.values()) >> 20
        with progress("fetch, MiB", total=megabytes) if megabytes << 20 >= MANY_BYTES else nullcontext() as bar:

            def download(file: Path) -> Version:
                key, digest, size = wanted[file]
                version = self.bucket.download(key, file, digest)
                if bar is not None:
                    bar.advance(size / 2**20)
                return version

            return side_by_side(download, wanted)

    def _upload(self, folder: Path, files: Mapping[str, Mapping[str, Any]]) -> set[str]:
        """Uploads what the bucket does not hold; returns the keys of the files of the step that it held before."""
        there = set(self.bucket.list(f"{self._key(folder)}/files/"))
        wanted = {self._file_key(folder, file["sha256"]): folder / name for name, file in files.items()}
        self.bucket.upload({key: path for key, path in wanted.items() if key not in there})
        return there


def _is_seen(mark: Path, etag: str | None) -> bool:
    seen = mark.with_name(SEEN)
    return mark.exists() and seen.exists() and seen.read_text() == etag


def _empty(folder: Path) -> None:
    """Removes all that a step's folder holds but hidden files."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _shared_files(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        patterns = OWN_TO_A_MACHINE if Path(place) == folder else OWN_TO_A_MACHINE[:1]
        folders[:] = [name for name in folders if not any(fnmatchcase(name, pattern) for pattern in patterns)]
        yield from (Path(place, name) for name in files if not any(fnmatchcase(name, pattern) for pattern in patterns))


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _exchanged(file: Path, version: Version) -> dict[str, Any]:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"etag": version.etag, "generation": version.generation, "stamp": _stamp(file), "sha256": digest}


def _synced(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> version and stamp of the files of a folder that were exchanged with the bucket."""
    file = folder / _SYNCED
    return json.loads(file.read_bytes()) if file.exists() else {}


def _note(folder: Path, synced: Mapping[str, Any]) -> None:
    _write(folder / _SYNCED, json.dumps(synced).encode())


def _write(file: Path, content: bytes) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}.draft")
    draft.write_bytes(content)
    os.replace(draft, file)
