"""MLflow's sqlite file: made aside and renamed into place, so that it is whole whenever it is there, and moved with its storage.

MLflow makes its tables by a long row of migrations, and notes the number of each when it is through. Killed within them it
leaves a file on which they cannot be repeated; former versions of hba_ray left such files behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from hba_ray.store.folders import sqlite_uri

if TYPE_CHECKING:
    from sqlalchemy import Connection

ARTIFACTS = "mlartifacts"
"""The folder of the store's files, in a storage's folder."""


def make_store(file: Path, migrate: Callable[[Path], None] = lambda file: _migrate(file)) -> None:
    """Makes an sqlite store where there is none, or one that is half made and holds no run; one process at a time may call it.

    Args:
        migrate: makes all tables in a new file.

    Raises:
        MlflowException, SQLAlchemyError, OSError: it cannot be read or written.
    """
    if file.exists() and (_holds_runs(file) or _opens(file)):
        return  # what is wrong with a store that holds runs, MLflow says itself
    draft = file.with_name(f".{file.name}.draft")
    for leftover in file.parent.glob(f"{draft.name}*"):  # of a process that was killed, and sqlite's journal beside it
        leftover.unlink()
    migrate(draft)
    for journal in ("-journal", "-wal", "-shm"):  # of a half made store
        file.with_name(file.name + journal).unlink(missing_ok=True)
    os.replace(draft, file)


def _migrate(file: Path) -> None:
    _open(sqlite_uri(file), file)


def _open(address: str, file: Path) -> None:
    """Opens a store as MLflow does: makes the tables of a new one, and refuses one whose tables are not those of its version."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(address, str(file.parent / ARTIFACTS)).engine.dispose()


def _holds_runs(file: Path) -> bool:
    return bool(_values(file, "SELECT run_uuid FROM runs LIMIT 1", "runs"))


def _opens(file: Path) -> bool:
    """Whether a store is one that MLflow takes; without the number of a migration it is not even tried."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if not _values(file, "SELECT version_num FROM alembic_version", "alembic_version"):
        return False
    try:
        _open(sqlite_uri(file).replace("sqlite:", "sqlite+pysqlite:", 1), file)  # MLflow keeps connections by their address
    except (MlflowException, SQLAlchemyError):
        return False
    return True


def follow_the_storage(file: Path, artifacts: Path) -> None:
    """Has a store name its files where they lie now: MLflow notes absolute addresses, which a moved storage leaves behind.

    Args:
        artifacts: the folder of the files of all records.

    Raises:
        SQLAlchemyError: the store cannot be read or written.
    """
    from sqlalchemy import text

    with _opened(file) as connection:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            for (former,) in connection.execute(text(f"SELECT DISTINCT {column} FROM {table}")).all():
                now = _place_now(former or "", artifacts)
                if now is not None:
                    connection.execute(text(f"UPDATE {table} SET {column} = :now WHERE {column} = :former"), {"now": now, "former": former})
        connection.commit()


def _place_now(former: str, artifacts: Path) -> str | None:
    """The address of files that were noted under a former one; None where it still holds, or where they never lay in a storage.

    >>> _place_now("file:///old/runs/mlartifacts/7/artifacts", Path("/new/mlartifacts"))
    'file:///new/mlartifacts/7/artifacts'
    """
    address = urlsplit(former)
    noted = Path(unquote(address.path) if address.scheme else former)
    if address.scheme not in ("", "file") or ARTIFACTS not in noted.parts or noted.is_relative_to(artifacts):
        return None
    root = Path(*noted.parts[: noted.parts.index(ARTIFACTS) + 1])
    place = artifacts / noted.relative_to(root)
    if noted.exists() and not place.exists():
        return None
    return place.as_uri() if address.scheme else str(place)


@contextmanager
def _opened(file: Path) -> Iterator[Connection]:
    from sqlalchemy import create_engine

    engine = create_engine(sqlite_uri(file))
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _values(file: Path, query: str, table: str) -> list[str]:
    """The values of a query's one column; none where its table is not there."""
    from sqlalchemy import inspect, text

    with _opened(file) as connection:
        return [value for (value,) in connection.execute(text(query)).all()] if inspect(connection).has_table(table) else []
