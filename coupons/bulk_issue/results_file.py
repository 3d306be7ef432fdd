"""The file that tells how a bulk issue ended: it appears whole, at the end, or not at all."""

from __future__ import annotations

import csv
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from uuid import UUID

HEADER = ("userId", "requestId", "status", "reason")
INVALID = "INVALID"

# A spreadsheet runs a cell that begins with one of them as a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class BadResultsFile(Exception):
    """The file cannot be written."""


class Row(NamedTuple):
    """``user_id`` is the text of the line if that is no user id; it has no request then."""

    user_id: int | str
    request_id: UUID | None
    status: str
    reason: str | None


class ResultsFile:
    """Rows go into ``<name>.part`` beside it, which ``finish`` renames. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Raises BadResultsFile if ``path`` cannot be written, or if another run writes it."""
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        if path.is_dir():
            raise BadResultsFile(f"{path} is a folder: name a file by --results")
        try:
            self._file = self._part.open("a", newline="", encoding="utf-8")
        except OSError as error:
            raise BadResultsFile(f"{self._part}: {error.strerror}; name another file by --results") from error
        if not self._is_ours():
            self._file.close()
            raise BadResultsFile(f"another run writes {path}: wait for it, or name another file by --results")
        self._file.truncate(0)
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(HEADER)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._file.closed:
            self._part.unlink(missing_ok=True)
            self._file.close()

    def write(self, rows: Iterable[Row]) -> None:
        self._rows.writerows([_neutral(cell) for cell in row] for row in rows)

    def finish(self) -> None:
        """All is written: the file gets its name, in place of an older one."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._part.replace(self._path)
        self._file.close()

    def _is_ours(self) -> bool:
        try:
            # Ends with the process: what a killed run left behind is taken over.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have finished meanwhile, and then this is the finished file.
            return os.path.samestat(os.fstat(self._file.fileno()), self._part.stat())
        except OSError:
            return False


def _neutral(cell: object) -> object:
    """The cell as text where a spreadsheet would take it for a formula; numbers and ids stay as they are."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) else cell
