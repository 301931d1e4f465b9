"""The folders of runs and steps, which of them are finished, and locks on them. Only this module builds their paths.

    <storage>/<name>-<fingerprint>/          a run: its spec, ledger, table, report
    <storage>/steps/<kind>-<fingerprint>/    a step, shared by all runs that need it
    <storage>/judge-cache/                   verdicts of judges, shared by all runs
    <storage>/tables-<fingerprint>/          tables of the paper that describe an atlas, named by its step
    <storage>/descriptors/                   descriptors of clips, shared by all atlases that hold the clip
    <storage>/digests.jsonl                  digests of weights and atlases, so that they are read once (`store/files.py`)

A step is finished when its `done.json` is there, which is written last and in one go, under a seal. Whoever works on a
step holds its lock, so two drivers never write one step. `store/finished.py` knows a finished step's files.

A storage may be the address of a bucket; its folder is then one of this machine, and `store/mirror.py` carries files between the two.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hba_ray.errors import DataError, EnvironmentMissing, SpecError
from hba_ray.store.mirror import EVENTS, GENERATION, mirror_of
from hba_ray.store.scratch import folder_here

RESOLVED, REPORT, LEDGER = "resolved.yaml", "report.json", "ledger.jsonl"
"""Files of a run: its spec with all settings; its report for programs, once it is finished; what was done, a line an event."""
MLFLOW = "mlflow.db"
"""The MLflow store of a storage."""
DONE = "done.json"
"""File of a finished step, with what it says of itself."""
DO_AGAIN = "do the step again: give `hba run` the same spec and overrides and --redo STEP; or delete its folder"
"""The way out of a damaged file in the folder of a step."""
_STEP = "step"
"""Key of `done.json`: the name of the folder, so that the folder of one step is not taken for that of another."""
FILES, MADE_FROM = "files", "made_from"
"""Keys of `done.json`, see `store/finished.py`; former versions of hba_ray wrote neither."""
_SEAL = "seal"
"""Key of `done.json` with a digest of all its other values; former versions of hba_ray wrote none."""
LOCK = ".lock"
LOCK_SECONDS = 6 * 3600
"""How long a run waits for another run that is doing a step which both need."""
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of a disk that is full, has a quota or a limit, or is read-only."""


class Storage:
    """The folder of all runs and steps.

    Args:
        folder: its path or, in a bucket, its address.

    Raises:
        EnvironmentMissing: the folder cannot be made or written to.
    """

    def __init__(self, folder: str | Path):
        self.folder = folder_here(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as cause:
            raise _unwritable(self.folder, cause) from None

    def run(self, name: str, fingerprint: str) -> Path:
        """The folder of a run."""
        return self.folder / f"{name}-{fingerprint}"

    def step(self, kind: str, fingerprint: str) -> Path:
        """The folder of a step."""
        return self.folder / "steps" / f"{kind}-{fingerprint}"

    def steps_of(self, kind: str) -> list[Path]:
        """The folders of all steps of a kind, finished or not."""
        steps, mirror = self.folder / "steps", mirror_of(self.folder)
        elsewhere = [] if mirror is None else [steps / name for name in mirror.finished() if name.startswith(f"{kind}-")]
        return sorted({*steps.glob(f"{kind}-*"), *elsewhere})

    def tables(self, fingerprint: str) -> Path:
        """The folder of the tables that describe an atlas.

        Args:
            fingerprint: of its step.
        """
        return self.folder / f"tables-{fingerprint}"

    @property
    def descriptors(self) -> Path:
        """The folder of descriptor tables."""
        return self.folder / "descriptors"

    @property
    def judge_cache(self) -> Path:
        """The folder of verdicts."""
        return self.folder / "judge-cache"

    @property
    def mlflow_uri(self) -> str:
        """The address of the MLflow store in this storage, which is used where a spec names no other."""
        return sqlite_uri(self.folder / MLFLOW)


def sqlite_uri(file: Path) -> str:
    """The address of an sqlite file, in which SQLAlchemy quotes characters such as `?` and `#`.

    A quoted address also names the driver: MLflow takes apart addresses that begin with `sqlite:///`, and would make a
    folder of the quoted name.
    """
    from sqlalchemy import URL

    address = URL.create("sqlite", database=str(file)).render_as_string()
    return address if address == f"sqlite:///{file}" else address.replace("sqlite:", "sqlite+pysqlite:", 1)


def file_of_run(run: Path, name: str) -> Path:
    """A file that every run has or, if it is the report, every finished run.

    Raises:
        SpecError: it is not there, so the folder is no run.
    """
    bring(run)
    file = run / name
    if not file.is_file():
        kind = "finished run" if name == REPORT else "run"
        raise SpecError(str(run), f"is no {kind}: it holds no {name}", "give a run folder, as `hba run` prints it")
    return file


def done(folder: Path) -> dict[str, Any] | None:
    """What a finished step wrote about itself; None while it is not finished.

    Raises:
        DataError: the mark is damaged.
    """
    mark = folder / DONE
    if (mirror := mirror_of(folder)) is not None:
        mirror.refresh(mark)
    if not mark.exists():
        return None
    try:
        if not mark.is_file():
            raise ValueError("it is no file")
        facts = read_object(mark)
    except (OSError, ValueError, RecursionError) as cause:
        raise DataError(str(mark), f"is damaged: {cause}", DO_AGAIN, reason="corrupt file") from None
    seal = facts.pop(_SEAL, None)
    is_former = seal is None and facts and FILES not in facts
    if not is_former and seal != _seal_of(facts):
        raise DataError(str(mark), "is damaged: its values are not those that were written", DO_AGAIN, reason="corrupt file")
    if (step := facts.pop(_STEP, folder.name)) != folder.name:
        raise DataError(str(mark), f"is that of another step: {step}", DO_AGAIN, reason="corrupt file")
    return facts


def look_again(folder: Path) -> None:
    """Makes this process see at once what others have finished since it last looked, where the storage is a bucket."""
    if (mirror := mirror_of(folder)) is not None:
        mirror.look_again()


def finish(folder: Path, facts: Mapping[str, Any]) -> None:
    """Marks a step as finished, with what it says about itself."""
    plain = {**json.loads(json.dumps(facts)), _STEP: folder.name}
    text = json.dumps({**plain, _SEAL: _seal_of(plain)}, indent=1) + "\n"
    if (mirror := mirror_of(folder)) is not None:
        mirror.finish(folder / DONE, text, facts.get(FILES, {}))
    else:
        write_text(folder / DONE, text)


def _seal_of(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def reopen(folder: Path) -> None:
    """Removes the mark of a finished step, so that it is done again."""
    if (mirror := mirror_of(folder)) is not None:
        mirror.reopen(folder)
    (folder / DONE).unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Removes all that a step's folder holds, the mark first and the lock never, so that the step is done from its beginning."""
    if (mirror := mirror_of(folder)) is not None:
        mirror.forget(folder)
    if not folder.is_dir():
        return
    marks_first = sorted(folder.iterdir(), key=lambda path: path.name != DONE)
    for path in (path for path in marks_first if path.name not in (LOCK, GENERATION)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a file so that it holds the whole text or, where that fails, what it held before."""
    with drafted(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """A file beside another one, which it replaces at the end of the block; where the block fails, the other stays as it was."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        OSError, RecursionError: the file cannot be read, or its values are nested too deep.
        ValueError: it is no JSON, or no object.
    """
    facts = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(facts, dict):
        raise ValueError("it holds no JSON object")
    return facts


def copy_folder(source: Path, target: Path) -> None:
    """Copies all that a folder holds into another, which may exist.

    Raises:
        OSError: the system's error; `shutil.copytree` alone would not tell a full disk from a missing file.
    """
    causes: list[OSError] = []

    def copy(file: str, copied: str) -> object:
        try:
            return shutil.copy2(file, copied)
        except OSError as cause:
            causes.append(OSError(cause.errno, cause.strerror, cause.filename2 or cause.filename))
            raise

    try:
        shutil.copytree(source, target, dirs_exist_ok=True, copy_function=copy)
    except shutil.Error as error:
        raise causes[0] if causes else error from None


def note(run_folder: Path, **facts: Any) -> None:
    """Adds a line to the ledger of a run; it is on the disk, or in the bucket, when this returns."""
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "pid": os.getpid(), **facts}
    if (mirror := mirror_of(run_folder)) is not None:
        mirror.add_event(run_folder, json.dumps(line).encode() + b"\n")
    else:
        append_line(run_folder / LEDGER, line)


def ledger(run_folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ledger, oldest first."""
    if (mirror := mirror_of(run_folder)) is not None:
        mirror.pull(run_folder, f"{EVENTS}/")
    return read_lines(run_folder / LEDGER)


def bring(folder: Path) -> None:
    """Brings what others have written into a run, or a shared table, to this machine, where the storage is a bucket."""
    if (mirror := mirror_of(folder)) is not None:
        mirror.pull(folder)


def share(folder: Path) -> None:
    """Gives others what this process has written into a run that it holds, where the storage is a bucket."""
    if (mirror := mirror_of(folder)) is not None:
        mirror.push(folder)


def append_line(file: Path, facts: dict[str, Any], *, durable: bool = True) -> None:
    """Adds a JSON object as a line to a file, in one write, so that lines of several processes do not mix.

    Args:
        durable: whether the line must be on the disk when this returns.
    """
    number = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(number).st_size
        torn = size > 0 and os.pread(number, 1, size - 1) != b"\n"  # a writer died within the last line
        os.write(number, b"\n" * torn + json.dumps(facts).encode() + b"\n")
        if durable:
            os.fsync(number)
    finally:
        os.close(number)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines; none where it is missing. A line whose writer died within it is left out.

    Raises:
        DataError: something else than a file stands in its place.
    """
    if not file.exists():
        return []
    if not file.is_file():
        raise DataError(str(file), "is a folder, a pipe or a device, and no file", "move it away", reason="not a file")
    return [facts for line in file.read_bytes().splitlines() if (facts := object_in(line)) is not None]


def object_in(line: bytes) -> dict[str, Any] | None:
    """The JSON object that a line holds; None where it holds none, as where its writer died within it.

    >>> object_in(b'{"step": 1}'), object_in(b'{"step": 1')
    ({'step': 1}, None)
    """
    try:
        facts = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None


def keep_lines(file: Path, keep: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Takes all other lines out of a file of lines, as `write_text`, and returns what it now holds; a missing file stays so."""
    kept = [facts for facts in read_lines(file) if keep(facts)]
    if file.exists():
        write_text(file, "".join(json.dumps(facts) + "\n" for facts in kept))
    return kept


@contextmanager
def claimed(folder: Path, *, wait_seconds: float = 0, on_wait: Callable[[], None] | None = None) -> Iterator[Callable[[], None]]:
    """Holds the lock of a run or a step for the time of the block. The system frees the lock when its holder dies.

    In a bucket the lock is a lease (`store/leases.py`), which others take over when its holder gives no sign.

    Args:
        wait_seconds: how long to wait where another process holds it.
        on_wait: called before waiting; not called where the lock is free.

    Yields:
        What makes sure that it is still held, and raises `EnvironmentMissing` where a lease was lost.

    Raises:
        EnvironmentMissing: another process holds it for longer, or the disk is full or cannot be written to.
    """
    try:
        if (mirror := mirror_of(folder)) is not None:
            with mirror.claimed(folder, wait_seconds=wait_seconds, on_wait=on_wait) as lease:
                yield lease.check
        else:
            with _locked(folder, wait_seconds, on_wait):
                yield lambda: None
    except OSError as cause:
        if cause.errno not in _UNWRITABLE:
            raise
        raise _unwritable(folder, cause) from cause


@contextmanager
def _locked(folder: Path, wait_seconds: float, on_wait: Callable[[], None] | None) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if on_wait:
                on_wait()
            lock.acquire(timeout=wait_seconds)
        yield
    except Timeout:
        raise EnvironmentMissing(str(folder), "another process works on this", "wait for it, or stop it") from None
    finally:
        lock.release()


def _unwritable(folder: Path, cause: OSError) -> EnvironmentMissing:
    what = f"cannot be written to: {cause.strerror}" + (f" ({cause.filename})" if cause.filename else "")
    return EnvironmentMissing(str(folder), what, "give another folder as compute.storage=FOLDER")
