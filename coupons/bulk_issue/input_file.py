"""The input file of a bulk issue: the header ``userId``, then one user id per line. It is read line by line."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from common.bigint import parse_id
from common.processes.lifecycle import StopFlag

HEADER = "userId"

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_USER_ID = re.compile(rb"[0-9]{1,19}")
# Only the beginning of a longer line is kept, so that a file without line ends does not fill the memory.
_MAX_LINE_BYTES = 1000
_SHOWN_BYTES = 40
_BLOCK = 1 << 20


class BadUserFile(Exception):
    """The file cannot be read as a list of users; the message says why."""


class Line(NamedTuple):
    """A line that is not empty.

    ``user_id``: None if the line is not a positive 64-bit integer. ``text``: its first 40 characters.
    """

    number: int
    user_id: int | None
    text: str


class UserFile:
    """An open file of users. It is read twice, so it must not change. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises BadUserFile unless ``path`` is a readable regular file with the header."""
        try:
            self._file = path.open("rb")
        except (OSError, ValueError) as error:
            raise BadUserFile(f"{path}: {getattr(error, 'strerror', None) or error}") from error
        self._path = path
        self._initial_stat = self._stat()
        try:
            self._check()
        except BadUserFile:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def count_lines(self, stop: StopFlag) -> tuple[int, str]:
        """Return the number of lines after the header, with empty lines, and the SHA-256 of the file as hex digits.

        After ``stop``, both cover only the part that was read.
        """
        digest = hashlib.sha256()
        ends, last = 0, b"\n"
        self._file.seek(0)
        while not stop and (block := self._file.read(_BLOCK)):
            digest.update(block)
            ends += block.count(b"\n")
            last = block[-1:]
        return ends + (last != b"\n") - 1, digest.hexdigest()

    def lines(self) -> Iterator[Line]:
        """Yield the non-empty lines after the header. Raises BadUserFile at the end if the file was changed."""
        self._file.seek(0)
        self._file.readline()
        number = 1
        while raw := self._file.readline(_MAX_LINE_BYTES):
            number += 1
            is_complete = raw.endswith(b"\n") or len(raw) < _MAX_LINE_BYTES
            while not is_complete:
                rest = self._file.readline(_BLOCK)
                is_complete = rest.endswith(b"\n") or len(rest) < _BLOCK
            if field := _field(raw):
                yield Line(number, _user_id(field), field[:_SHOWN_BYTES].decode("ascii", "backslashreplace"))
        if self._stat() != self._initial_stat:
            raise BadUserFile(f"{self._path} was changed while it was read: run it again")

    def _check(self) -> None:
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            raise BadUserFile(f"{self._path} is not a regular file, but it must be read twice: save it to a file")
        header = _field(self._file.readline(_MAX_LINE_BYTES).removeprefix(_BYTE_ORDER_MARK))
        if header != HEADER.encode():
            found = header[:_SHOWN_BYTES].decode("ascii", "backslashreplace")
            raise BadUserFile(f"{self._path}: the first line must be {HEADER}, not {found!r}")

    def _stat(self) -> tuple[int, int]:
        current = os.fstat(self._file.fileno())
        return current.st_size, current.st_mtime_ns


def _field(raw: bytes) -> bytes:
    """Return the field of a line, without surrounding space and without the quotes that spreadsheets add."""
    text = raw.strip()
    quoted = len(text) >= 2 and text[:1] == text[-1:] == b'"'
    return text[1:-1].strip() if quoted else text


def _user_id(field: bytes) -> int | None:
    return parse_id(field) if _USER_ID.fullmatch(field) else None
