"""The results file of a bulk issue. It appears complete, by a rename at the end of the run, or not at all."""

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

# A spreadsheet runs a cell that begins with one of these as a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class BadResultsFile(Exception):
    """The results file cannot be written; the message says why and what to do."""


class Row(NamedTuple):
    """A row of the results. A line without a valid user id has its text as ``user_id``, and no request."""

    user_id: int | str
    request_id: UUID | None
    status: str
    reason: str | None


class ResultsFile:
    """Writes rows to ``<name>.part`` in the same folder; ``finish`` renames it. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Create the part file. Raises BadResultsFile if it cannot be written, or if another run is writing it."""
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        if path.is_dir():
            raise BadResultsFile(f"{path} is a folder: name a file with --results")
        try:
            self._file = self._part.open("a", newline="", encoding="utf-8")
        except OSError as error:
            raise BadResultsFile(f"{self._part}: {error.strerror}; name another file with --results") from error
        if not self._lock():
            self._file.close()
            raise BadResultsFile(f"another run writes {path}: wait for it, or name another file with --results")
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
        """Append ``rows``."""
        self._rows.writerows([_escape_formula(cell) for cell in row] for row in rows)

    def finish(self) -> None:
        """Sync the part file to disk and rename it to the results file, replacing an older file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._part.replace(self._path)
        self._file.close()

    def _lock(self) -> bool:
        """Lock the part file; False if another run holds it or has just finished it."""
        try:
            # The lock ends with its process, so the part file of a killed run is reused.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The run that held the lock may have renamed the file in the meantime: then this is its finished file.
            return os.path.samestat(os.fstat(self._file.fileno()), self._part.stat())
        except OSError:
            return False


def _escape_formula(cell: object) -> object:
    """Prefix text that a spreadsheet would run as a formula with a quote; numbers and ids stay unchanged."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) else cell
