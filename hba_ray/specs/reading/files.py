"""Reads a small text file as a whole. Devices, pipes and folders are refused, and so is what is too large to be what it should be."""

from __future__ import annotations

import os
from pathlib import Path
from stat import S_ISDIR, S_ISREG

MOST_BYTES = 1 << 20
"""Of a spec, or of a file of prompts."""


class UnreadableFile(Exception):
    """A file cannot be read as text.

    Attributes:
        what: why not.
        way_out: what to do about it; may be empty.
        is_missing: whether there is no such file.
    """

    def __init__(self, what: str, way_out: str = "", *, is_missing: bool = False):
        super().__init__(what, way_out)
        self.what, self.way_out, self.is_missing = what, way_out, is_missing


def whole_text(path: Path, *, most_bytes: int = MOST_BYTES) -> str:
    """The text of a regular file in UTF-8.

    Args:
        most_bytes: a larger file is refused before it is read.

    Raises:
        UnreadableFile: it is missing, empty, too large, not text, or no regular file.
    """
    try:
        # without O_NONBLOCK, opening a pipe would wait for somebody to write into it
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(number)
            if not S_ISREG(found.st_mode):
                raise UnreadableFile("is a folder" if S_ISDIR(found.st_mode) else "is not a file", "name a file that holds text")
            if not found.st_size:  # files of /proc say so, too, and reading the kernel's log would wait for its next line
                raise UnreadableFile("is empty", "name a file that holds text")
            with open(number, "rb", closefd=False) as file:
                data = file.read(most_bytes + 1)
        finally:
            os.close(number)
    except FileNotFoundError:
        raise UnreadableFile("no such file", is_missing=True) from None
    except OSError as cause:
        raise UnreadableFile(f"cannot be read: {cause.strerror}") from None
    except ValueError as cause:  # a zero byte, or half a character, in its name
        raise UnreadableFile(f"cannot be read: {cause}") from None
    if len(data) > most_bytes:
        raise UnreadableFile(f"is larger than {most_bytes / 2**20:g} MiB", "name the file that was meant, or shorten it")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UnreadableFile("is not a text file in UTF-8", "save it in UTF-8") from None
