"""A column of id ranges."""

from __future__ import annotations

import re
from collections.abc import Iterable

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

_RANGE = re.compile(r"\[(\d+),(\d+)\)")


class IdRangesField(models.Field):  # type: ignore[type-arg]  # not generic at runtime
    """Ranges of ids, first and last, in an int8multirange."""

    def db_type(self, connection: BaseDatabaseWrapper) -> str:
        return "int8multirange"

    @staticmethod
    def parse(text: str) -> list[tuple[int, int]]:
        """Return the ranges of PostgreSQL's text form, whose upper bounds are exclusive."""
        return [(int(first), int(end) - 1) for first, end in _RANGE.findall(text)]

    @staticmethod
    def text(ranges: Iterable[tuple[int, int]]) -> str:
        """Return PostgreSQL's text form of ``ranges``."""
        return "{" + ",".join(f"[{first},{last}]" for first, last in ranges) + "}"

    def from_db_value(self, value: str | None, *context: object) -> list[tuple[int, int]] | None:
        return None if value is None else self.parse(value)

    def get_prep_value(self, value: list[tuple[int, int]] | None) -> str | None:
        return None if value is None else self.text(value)
