"""The running processes, as their heartbeats report them, and the alarms about those that are silent or hang."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec
from django.conf import settings
from django.db import connection, transaction

from ..lag import HeldPartition, decode_partitions
from .alerts import alert_rule
from .audit import record_action
from .evaluation import Condition, register_judge

PROCESS_SILENT = alert_rule("process-silent", "critical", settings=("ALERT_SILENT_SECONDS",))
PROCESS_HANGING = alert_rule("process-hanging", "critical", settings=("ALERT_HANGING_SECONDS",))
# After an outage of the database all processes are silent until their next try, a second later.
_SILENT_FOR_SECONDS = 10.0

# Seconds are rounded: a clock that was set back must not make an age negative.
_READ = """
    SELECT id, role, host, pid, version, memory_bytes, started_at, seen_at, turned_at, polled_at,
           groups::text, partitions::text,
           greatest(0, extract(epoch FROM statement_timestamp() - seen_at))::float,
           greatest(0, extract(epoch FROM seen_at - turned_at))::float,
           version = first_value(version) OVER (ORDER BY started_at DESC, id)
    FROM kafka_bridge_processheartbeat
    WHERE seen_at > statement_timestamp() - %s * interval '1 hour'
    ORDER BY role, host, started_at, id
"""
_FORGET_SILENT = """
    DELETE FROM kafka_bridge_processheartbeat
    WHERE seen_at < statement_timestamp() - %s * interval '1 second'
      AND (%s = '' OR role = %s) AND (%s = '' OR host = %s)
    RETURNING role, host, pid
"""


class ProcessState(StrEnum):
    """``SILENT``: no heartbeat for ``ALERT_SILENT_SECONDS``. ``HANGING``: a loop made no pass for so long."""

    ALIVE = "alive"
    SILENT = "silent"
    HANGING = "hanging"


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A process, by its last heartbeat.

    ``silent_seconds`` is the time since that heartbeat, ``idle_seconds`` the time before it in which one of its loops
    made no pass. ``polled_at`` is None for a process without consumers, ``memory_bytes`` where the system does not say.
    ``is_newest`` says whether it has the version of the process that was started last.
    """

    id: UUID
    role: str
    host: str
    pid: int
    version: str
    memory_bytes: int | None
    started_at: datetime
    seen_at: datetime
    turned_at: datetime
    polled_at: datetime | None
    groups: tuple[str, ...]
    partitions: tuple[HeldPartition, ...]
    silent_seconds: float
    idle_seconds: float
    is_newest: bool

    @property
    def state(self) -> ProcessState:
        if self.silent_seconds > settings.ALERT_SILENT_SECONDS:
            return ProcessState.SILENT
        if self.idle_seconds > settings.ALERT_HANGING_SECONDS:
            return ProcessState.HANGING
        return ProcessState.ALIVE

    @property
    def name(self) -> str:
        """Role, host and pid: the subject of its alerts."""
        return f"{self.role}-{self.host}-{self.pid}"

    def __str__(self) -> str:
        return f"{self.role} on {self.host} (pid {self.pid})"


def running_processes() -> list[RunningProcess]:
    """Return the processes by role and host, in one query.

    A process that ended by itself has no row. One that was killed is listed as silent until another of the same role,
    host and groups has started in its place, until an operator forgets it, or for HEARTBEAT_RETENTION_HOURS.
    """
    with connection.cursor() as cursor:
        cursor.execute(_READ, [settings.HEARTBEAT_RETENTION_HOURS])
        return [_process(row) for row in cursor.fetchall()]


def _process(row: Sequence[Any]) -> RunningProcess:
    try:
        groups = tuple(msgspec.json.decode(row[10], type=list[str]))
    except msgspec.MsgspecError:
        # Of another version, or written by hand: it must not hide the other processes.
        groups = ()
    return RunningProcess(*[*row[:10], groups, tuple(decode_partitions(row[11])), *row[12:]])


def silent_processes_forget(*, actor: str, reason: str = "", role: str = "", host: str = "") -> list[str]:
    """Delete the rows of silent processes, of all or of a role or host; returns their names.

    Recorded as actions of ``actor``. Their alerts end as if the processes had ended by themselves. A process that was
    only cut off reports again.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_FORGET_SILENT, [settings.ALERT_SILENT_SECONDS, role, role, host, host])
        forgotten = sorted(f"{role} on {host} (pid {pid})" for role, host, pid in cursor.fetchall())
        for name in forgotten:
            record_action(actor=actor, action="process.forget", subject=name, reason=reason)
    return forgotten


def judge_processes() -> Iterator[Condition]:
    """Return a condition for each process that is silent or hangs."""
    for process in running_processes():
        if not process.version:
            # Web and site of the version before left their row also at an orderly end.
            continue
        if process.state is ProcessState.SILENT:
            yield Condition(
                PROCESS_SILENT,
                f"{process}{_with_groups(process)} gave no sign of life for {process.silent_seconds:.0f} s: it was"
                " killed, or it is cut off from PostgreSQL",
                process.name,
                _SILENT_FOR_SECONDS,
            )
        elif process.state is ProcessState.HANGING:
            yield Condition(
                PROCESS_HANGING,
                f"{process}{_with_groups(process)} lives, but a loop of it made no pass for"
                f" {process.idle_seconds:.0f} s; SIGUSR1 writes its stacks to its log",
                process.name,
            )


def _with_groups(process: RunningProcess) -> str:
    """Return what tells apart processes of one command: the groups of a consumer."""
    return f", groups {', '.join(process.groups)}," if process.groups else ""


def register() -> None:
    """Register the alarms; called once, when the app is ready."""
    register_judge([PROCESS_SILENT, PROCESS_HANGING], judge_processes)
