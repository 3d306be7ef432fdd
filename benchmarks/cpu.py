"""Processor seconds of processes with all their children, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from devstack.procinfo import all_stats

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_LISTENING = "0A"


def cpu_seconds(roots: Iterable[int]) -> float:
    """What these processes and all below them have used, those that have ended and were waited for included."""
    parents = {stat.pid: stat.parent for stat in all_stats()}
    wanted = set(roots)
    # A child has a higher pid than its parent only until pids wrap round, hence the repetition.
    while more := {pid for pid, parent in parents.items() if parent in wanted and pid not in wanted}:
        wanted |= more
    return sum(map(_used, wanted))


def _used(pid: int) -> float:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    # utime, stime, cutime and cstime; the program's name in parentheses may hold spaces.
    return sum(map(int, text[text.rindex(")") + 2 :].split()[11:15])) / _TICKS


def listener(port: int) -> int | None:
    """The process of this machine that listens on a TCP port, the parent if it shares it with children."""
    sockets = {f"socket:[{inode}]" for inode in _listening_sockets(port)}
    owners = {stat.pid: stat.parent for stat in all_stats() if _holds(stat.pid, sockets)}
    return next((pid for pid, parent in owners.items() if parent not in owners), None)


def _listening_sockets(port: int) -> list[str]:
    rows = [line.split() for table in ("tcp", "tcp6") for line in (_PROC / "net" / table).read_text().splitlines()[1:]]
    return [row[9] for row in rows if row[3] == _LISTENING and int(row[1].rpartition(":")[2], 16) == port]


def _holds(pid: int, sockets: set[str]) -> bool:
    try:
        return any(os.readlink(file) in sockets for file in (_PROC / str(pid) / "fd").iterdir())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
