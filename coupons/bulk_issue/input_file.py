"""The file of a bulk issue: one user id a line under the header ``userId``, read line by line."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from common.processes.lifecycle import StopFlag

HEADER = "userId"

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_USER_ID = re.compile(rb"[0-9]{1,19}")
_LARGEST = 2**63 - 1
# Of a line that is longer only the beginning is kept, so that a file without line ends does not fill the memory.
_LONGEST_LINE = 1000
_TOLD = 40
_BLOCK = 1 << 20


class BadUserFile(Exception):
    """The file cannot be read as a list of users."""


class Line(NamedTuple):
    """A line with something on it. ``user_id`` is None if that is no user id; ``text`` is how it begins."""

    number: int
    user_id: int | None
    text: str


class UserFile:
    """An open file of users. It is read more than once, so it must stay as it is; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Raises BadUserFile unless ``path`` is a file that can be read and has the header."""
        try:
            self._file = path.open("rb")
        except (OSError, ValueError) as error:
            raise BadUserFile(f"{path}: {getattr(error, 'strerror', None) or error}") from error
        self._path = path
        self._seen = self._look()
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
        """The number of lines behind the header, empty ones included, and the SHA-256 of the whole file.

        Both are of what was read until ``stop``.
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
        """All lines behind the header that are not empty. Raises BadUserFile at the end if the file was changed."""
        self._file.seek(0)
        self._file.readline()
        number = 1
        while raw := self._file.readline(_LONGEST_LINE):
            number += 1
            whole = raw.endswith(b"\n") or len(raw) < _LONGEST_LINE
            while not whole:
                rest = self._file.readline(_BLOCK)
                whole = rest.endswith(b"\n") or len(rest) < _BLOCK
            if field := _field(raw):
                yield Line(number, _user_id(field), field[:_TOLD].decode("ascii", "backslashreplace"))
        if self._look() != self._seen:
            raise BadUserFile(f"{self._path} was changed while it was read: run it again")

    def _check(self) -> None:
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            raise BadUserFile(f"{self._path} is not a regular file, and it has to be read twice: save it as one")
        header = _field(self._file.readline(_LONGEST_LINE).removeprefix(_BYTE_ORDER_MARK))
        if header != HEADER.encode():
            begins = header[:_TOLD].decode("ascii", "backslashreplace")
            raise BadUserFile(f"{self._path}: the first line must be {HEADER}, and it is {begins!r}")

    def _look(self) -> tuple[int, int]:
        now = os.fstat(self._file.fileno())
        return now.st_size, now.st_mtime_ns


def _field(raw: bytes) -> bytes:
    """The only field of a line: without space and the quotes that spreadsheets put around it."""
    text = raw.strip()
    quoted = len(text) >= 2 and text[:1] == text[-1:] == b'"'
    return text[1:-1].strip() if quoted else text


def _user_id(field: bytes) -> int | None:
    if not _USER_ID.fullmatch(field):
        return None
    user_id = int(field)
    return user_id if 0 < user_id <= _LARGEST else None
