"""JSON that we have written ourselves, read back into the types that it was made from."""

from __future__ import annotations

from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from hba_ray.errors import DataError

Value = TypeVar("Value")


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
