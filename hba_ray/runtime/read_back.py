"""Files that we have written ourselves, read back; where someone has damaged one, its name is said and the way to a new one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import TypeAdapter, ValidationError

from hba_ray.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Value = TypeVar("Value")
DO_AGAIN = "delete the step's folder to do it again"
"""The way out of a damaged file in the folder of a step."""


def from_json(kind: TypeAdapter[Value], text: str, *, where: str, what: str, way_out: str) -> Value:
    """
    Args:
        where: names the file.
        what: it is, where it is not what it should be ("not scores").

    Raises:
        DataError: with the first defect of the text.
    """
    try:
        return kind.validate_json(text)
    except ValidationError as cause:
        error = cause.errors()[0]
        defect = ": ".join(part for part in (".".join(map(str, error["loc"])), error["msg"]) if part)
        raise DataError(where, f"{what}: {defect}", way_out, reason=what) from cause


def read_parquet(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A table of a step.

    Raises:
        DataError: it is damaged, or gone.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file, columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as cause:
        raise DataError(str(file), f"cannot be read: {str(cause).splitlines()[0]}", DO_AGAIN, reason="corrupt file") from cause
