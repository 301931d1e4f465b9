"""MLflow's sqlite file is whole or not there, whenever its maker dies; half made ones are replaced; files move with their storage."""

import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from hba_ray.errors import EnvironmentMissing
from hba_ray.specs.sections.compute import TrackingSpec
from hba_ray.store.folders import MLFLOW, sqlite_uri
from hba_ray.store.mlflow import FINGERPRINT, MlflowTracker
from hba_ray.store.mlflow_store import make_store

KILLS, PATIENCE_SECONDS = 8, 300
TAGS = {FINGERPRINT: "0123456789ab"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without a run."""
    file = tmp_path_factory.mktemp("whole") / MLFLOW
    make_store(file)
    return file


def execute(file: Path, *commands: str) -> list[tuple]:
    """What the last of some commands gives."""
    with closing(sqlite3.connect(file)) as connection:
        found = [connection.execute(command).fetchall() for command in commands]
        connection.commit()
    return found[-1]


def tables_of(file: Path) -> list[tuple]:
    """Tables with their columns, indices, and the number of the last migration."""
    columns = "SELECT m.name, (SELECT group_concat(name) FROM (SELECT name FROM pragma_table_info(m.name) ORDER BY name))"
    return [*execute(file, f"{columns} FROM sqlite_master m ORDER BY m.name"), *execute(file, "SELECT version_num FROM alembic_version")]


def begin_a_run(storage: Path) -> MlflowTracker:
    tracker = MlflowTracker(TrackingSpec(), storage)
    tracker.start("begun", {"sft.lr": 1e-4}, TAGS)
    return tracker


EARLY = "UPDATE alembic_version SET version_num = '451aebb31d03'"
"""The number of the first migration."""
HALF_MADE = {
    "no number": ["DELETE FROM alembic_version"],
    "no table of numbers": ["DROP TABLE alembic_version"],
    "an early number and later columns": [EARLY, "DROP TABLE logged_models"],
    "an early number alone": [EARLY],
}


@pytest.mark.parametrize("commands", HALF_MADE.values(), ids=HALF_MADE)
def test_a_store_that_was_left_half_made_is_made_again(whole: Path, tmp_path: Path, commands: list[str]):
    shutil.copy(whole, tmp_path / MLFLOW)
    execute(tmp_path / MLFLOW, *commands)
    begin_a_run(tmp_path).end()
    assert execute(tmp_path / MLFLOW, "SELECT name FROM runs") == [("begun",)]


def test_an_empty_file_is_no_store_yet(tmp_path: Path):
    (tmp_path / MLFLOW).touch()
    begin_a_run(tmp_path).end()
    assert execute(tmp_path / MLFLOW, "SELECT name FROM runs") == [("begun",)]


def test_a_store_with_runs_is_never_replaced(whole: Path, tmp_path: Path):
    shutil.copy(whole, tmp_path / MLFLOW)
    begin_a_run(tmp_path).end()
    execute(tmp_path / MLFLOW, EARLY, "DROP TABLE logged_models")
    with pytest.raises(EnvironmentMissing, match=r"MLflow at .* does not do its work: .*\n.*moved away, it is begun anew"):
        MlflowTracker(TrackingSpec(mlflow=f"sqlite:////{tmp_path}/{MLFLOW}"), tmp_path)  # an address that MLflow has not opened yet
    assert execute(tmp_path / MLFLOW, "SELECT name FROM runs") == [("begun",)]


def test_what_dies_while_it_makes_a_store_leaves_none_and_hinders_nobody(whole: Path, tmp_path: Path):
    def die(file: Path) -> None:
        shutil.copy(whole, file)
        execute(file, *HALF_MADE["no number"])
        file.with_name(f"{file.name}-journal").write_bytes(b"half a transaction")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_store(tmp_path / MLFLOW, migrate=die)
    assert not (tmp_path / MLFLOW).exists()
    make_store(tmp_path / MLFLOW)
    assert [file.name for file in tmp_path.iterdir()] == [MLFLOW]


@pytest.mark.parametrize("name", ["plain", "a b", "what?", "50%", "a%20b", "a#b", "é & co", "a?mode=memory&cache=shared"])
def test_a_storage_may_have_any_name(tmp_path: Path, whole: Path, name: str):
    storage = tmp_path / name
    storage.mkdir()
    shutil.copy(whole, storage / MLFLOW)
    tracker = begin_a_run(storage)
    tracker.log_text("so they said", "said.txt")
    tracker.end()
    assert execute(storage / MLFLOW, "SELECT name FROM runs") == [("begun",)]
    assert (storage / "mlartifacts" / tracker.run_id / "artifacts" / "said.txt").read_text() == "so they said"
    assert [path.name for path in tmp_path.iterdir()] == [name], "no folder of a quoted name was made"
    assert tracker.uri == sqlite_uri(storage / MLFLOW)


@pytest.mark.parametrize("copied", [False, True])
def test_records_and_their_files_move_with_the_storage(makers, tmp_path: Path, whole: Path, copied: bool):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    shutil.copy(whole, old / MLFLOW)
    first = makers(old, record_in)  # a process of its own, since MLflow remembers where a run's files are
    first.join(PATIENCE_SECONDS)
    assert first.exitcode == 0
    if copied:
        shutil.copytree(old, new)
    else:
        shutil.move(old, new)
    second = begin_a_run(new)
    assert execute(new / MLFLOW, "SELECT run_uuid FROM runs") == [(second.run_id,)]
    second.log_text("after", "after.txt")
    second.end()
    files = new / "mlartifacts" / second.run_id / "artifacts"
    assert {file.name for file in files.iterdir()} == {"params.json", "before.txt", "after.txt"}
    assert old.exists() == copied and not list(old.rglob("after.txt"))
    assert not execute(new / MLFLOW, f"SELECT * FROM runs WHERE artifact_uri LIKE '%{old}%'")


def record_in(folder: str) -> None:
    tracker = begin_a_run(Path(folder))
    tracker.log_text("before", "before.txt")
    tracker.end("FAILED")


def make_in(folder: str) -> None:
    """What a process that is killed does: the store and nothing else."""
    make_store(Path(folder) / MLFLOW)


@pytest.fixture(scope="module")
def makers() -> Iterator[object]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "mlflow.store.tracking.sqlalchemy_store", "hba_ray.store.mlflow_store"])
    started: list[ForkServerProcess] = []

    def start(folder: Path, work: Callable[[str], None] = make_in) -> ForkServerProcess:
        process = context.Process(target=work, args=(str(folder),))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.hostile("kills while MLflow's store is made")
@pytest.mark.timeout(900)
def test_a_maker_killed_in_its_first_seconds_leaves_no_store_or_a_whole_one(makers, tmp_path: Path, whole: Path):
    moments, tables = random.Random(3), tables_of(whole)
    for kill in range(KILLS):
        folder = tmp_path / f"storage{kill}"
        folder.mkdir()
        maker = makers(folder)
        maker.join(moments.uniform(0.0, 3.0))
        if maker.exitcode is None:
            os.kill(maker.pid, signal.SIGKILL)
            maker.join()
        if (folder / MLFLOW).exists():
            assert tables_of(folder / MLFLOW) == tables
        again = makers(folder)
        again.join(PATIENCE_SECONDS)
        assert again.exitcode == 0
        assert [file.name for file in folder.iterdir()] == [MLFLOW]
        assert tables_of(folder / MLFLOW) == tables
