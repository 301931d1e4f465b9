"""An object storage: whole objects by key, and writes that succeed only where nobody else has written meanwhile.

Everything that processes decide between them rests on two calls: `create`, of which only one of several succeeds, and `replace`, which
succeeds only while the object is as it was last seen. S3, GCS, Azure and most servers that speak their protocols offer both.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hba_ray.errors import DataError, EnvironmentMissing

if TYPE_CHECKING:
    from obstore.store import ObjectStore

AT_ONCE = 16
"""Objects that are moved side by side."""
RETRY_SECONDS = 60.0
"""How long a storage may fail to answer before an error says so."""
READ_BYTES = 1 << 23
ACCESS = (
    "keys and endpoint come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL and, for an "
    "endpoint without TLS, AWS_ALLOW_HTTP=true; GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_NAME and its key"
)
Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Version:
    """Which content of an object is meant, as the storage tells it: by an etag or, on GCS, by a generation."""

    etag: str | None
    generation: str | None = None

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Version:
        return cls(said.get("e_tag"), said.get("version"))


@dataclass(frozen=True)
class Listed:
    """An object in a listing."""

    etag: str | None
    size: int


class Bucket:
    """The objects below an address, such as s3://BUCKET/FOLDER; keys are relative to it.

    Every method raises `EnvironmentMissing` where the storage does not answer or refuses.

    Attributes:
        requests: how many requests of each kind were made.
        moved: bytes that were read and written.
    """

    def __init__(self, address: str):
        self.address = address
        self.requests: dict[str, int] = {}
        self.moved: dict[str, int] = {}

    def read(self, key: str) -> tuple[bytes, Version] | None:
        """The content of an object, and its version; None where there is none."""
        import obstore

        with self._asked("get"):
            try:
                found = obstore.get(self._client, key)
            except FileNotFoundError:
                return None
            content = bytes(found.bytes())
        self._count(self.moved, "read", len(content))
        return content, Version.of(found.meta)

    def create(self, key: str, content: bytes) -> Version | None:
        """Writes an object that is not there yet; None where another process has written it."""
        try:
            return self._put(key, content, "create")
        except FileNotFoundError as cause:
            raise EnvironmentMissing(self.address, "there is no such bucket", "make it, or mend the address") from cause

    def replace(self, key: str, content: bytes, seen: Version) -> Version | None:
        """Writes an object in place of the content that was last seen; None where another process has written it since."""
        said = {"e_tag": seen.etag, "version": seen.generation}
        try:
            return self._put(key, content, {name: value for name, value in said.items() if value is not None})
        except FileNotFoundError:
            return None

    def _put(self, key: str, content: bytes, mode: Any) -> Version | None:
        import obstore

        try:
            with self._asked("put"):
                written = Version.of(obstore.put(self._client, key, content, mode=mode))
        except _Refused:
            found = self.read(key)  # a request that was sent twice, since its first answer was lost, is refused and has succeeded
            return found[1] if found is not None and found[0] == content else None
        self._count(self.moved, "written", len(content))
        return written

    def list(self, prefix: str) -> dict[str, Listed]:
        """Key -> etag and size of all objects whose key begins with `prefix`, a whole folder of keys that ends with "/"."""
        import obstore

        with self._asked("list"):
            pages = list(obstore.list(self._client, prefix, chunk_size=1000))
        self._count(self.requests, "list", max(0, len(pages) - 1))
        return {entry["path"]: Listed(entry["e_tag"], entry["size"]) for page in pages for entry in page}

    def folders(self) -> list[str]:
        """The first parts of all keys that have more than one."""
        import obstore

        with self._asked("list"):
            return [name.rstrip("/") for name in obstore.list_with_delimiter(self._client)["common_prefixes"]]

    def upload(self, files: Mapping[str, Path]) -> None:
        """Writes files whole, by key; the key says what the content is, so whoever else writes it writes the same."""
        import obstore

        def put(key: str) -> None:
            with self._asked("put"):
                obstore.put(self._client, key, files[key])
            self._count(self.moved, "written", files[key].stat().st_size)

        side_by_side(put, files)

    def download(self, key: str, file: Path, digest: str | None = None) -> Version:
        """Writes an object's content to a file, whole or not at all, and returns its version.

        Args:
            digest: with which the content's SHA-256 must begin; None takes any.

        Raises:
            DataError: the object is gone, or holds other bytes.
        """
        import obstore

        file.parent.mkdir(parents=True, exist_ok=True)
        draft, read = file.with_name(f".{file.name}.{os.getpid()}.draft"), hashlib.sha256()
        way_out = "do the step again: give `hba run` the same spec and overrides and --redo STEP"
        try:
            with self._asked("get"), draft.open("wb") as target:
                found = obstore.get(self._client, key)
                for chunk in found.stream(min_chunk_size=READ_BYTES):
                    target.write(chunk)
                    read.update(chunk)
            self._count(self.moved, "read", draft.stat().st_size)
            if digest is not None and not read.hexdigest().startswith(digest):
                what = f"holds other bytes than when '{file.name}' was written"
                raise DataError(f"{self.address}/{key}", what, way_out, reason="corrupt file")
            written = found.meta["last_modified"].timestamp()
            os.utime(draft, (written, written))  # the same on every machine
            os.replace(draft, file)
        except FileNotFoundError as cause:
            raise DataError(f"{self.address}/{key}", f"is gone, and held '{file.name}'", way_out, reason="corrupt file") from cause
        finally:
            draft.unlink(missing_ok=True)
        return Version.of(found.meta)

    def delete(self, keys: Iterable[str]) -> None:
        """Removes objects; those that are not there are none's loss."""
        import obstore

        chosen = list(keys)
        if chosen:
            with self._asked("delete"):
                obstore.delete(self._client, chosen)

    @cached_property
    def _client(self) -> ObjectStore:
        from obstore.store import from_url

        return from_url(self.address, retry_config={"retry_timeout": timedelta(seconds=RETRY_SECONDS)})

    def _count(self, where: dict[str, int], name: str, number: int) -> None:
        where[name] = where.get(name, 0) + number

    @contextmanager
    def _asked(self, request: str) -> Iterator[None]:
        """Counts a request, and turns its failure into an error of ours.

        Raises:
            FileNotFoundError, _Refused: of these the caller decides what they mean.
        """
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        self._count(self.requests, request, 1)
        try:
            yield
        except (AlreadyExistsError, PreconditionError):
            raise _Refused from None
        except BaseError as cause:
            reason = str(cause).strip().splitlines()[0]
            raise EnvironmentMissing(self.address, f"the object storage does not answer or refuses: {reason}", ACCESS) from cause


class _Refused(Exception):
    """A conditional write was refused, since the object is not as its writer has last seen it."""


def side_by_side(do: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """What `do` makes of each item, in their order, several at a time."""
    chosen = list(items)
    if len(chosen) < 2:
        return [do(item) for item in chosen]
    with ThreadPoolExecutor(min(AT_ONCE, len(chosen))) as pool:
        return list(pool.map(do, chosen))
