"""Checks before an event, go or no-go: the lines that a check returns, and what an outage makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import NamedTuple

from django.db import connection
from redis.exceptions import RedisError

from common.processes.lifecycle import first_line
from common.processes.outages import is_transient


class Verdict(StrEnum):
    """``UNKNOWN``: the service does not say, and it is no reason to stop. ``WARN``: go, and watch it."""

    GO = "go"
    WARN = "warn"
    NO_GO = "no-go"
    UNKNOWN = "unknown"


class CheckLine(NamedTuple):
    """What a check found, in words, and what an operator does about it; ``remedy`` is empty where nothing is to do."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def judged(name: str, is_good: bool, found: str, remedy: str) -> CheckLine:
    """Return a line that says go without a remedy, or no-go with it."""
    return CheckLine(name, Verdict.GO, found) if is_good else CheckLine(name, Verdict.NO_GO, found, remedy)


def run_check(name: str, check: Callable[[], Iterable[CheckLine]]) -> list[CheckLine]:
    """Return the lines of ``check``; one no-go line if a service that it needs is away. Raises other errors."""
    try:
        return list(check())
    except Exception as error:
        return [outage_line(name, error)]


def outage_line(name: str, error: Exception) -> CheckLine:
    """Return the no-go line of a check that ended with ``error``; raises an error that is no outage of a service."""
    if not is_transient(error) and not isinstance(error, RedisError):
        raise error
    if not connection.in_atomic_block:
        # A broken session would fail the checks after this one too.
        connection.close()
    remedy = "start the service that the line names, or correct its address"
    return CheckLine(name, Verdict.NO_GO, f"cannot be checked: {first_line(error)}", remedy)


def is_go(lines: Iterable[CheckLine]) -> bool:
    """Whether no line says no-go."""
    return all(line.verdict is not Verdict.NO_GO for line in lines)
