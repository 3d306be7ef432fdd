"""CPU seconds and memory of processes with all their descendants, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from devstack.procinfo import all_stats

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")
_LISTENING = "0A"


def cpu_seconds(roots: Iterable[int]) -> float:
    """Return CPU seconds of these processes and all their descendants, reaped children included."""
    return sum(map(_used, _with_descendants(roots)))


def resident_megabytes(roots: Iterable[int]) -> float:
    """Return the resident memory of these processes and all their descendants; pages they share count for each."""
    return sum(map(_resident_bytes, _with_descendants(roots))) / 1e6


def _with_descendants(roots: Iterable[int]) -> set[int]:
    parents = {stat.pid: stat.parent for stat in all_stats()}
    wanted = set(roots)
    # Repeated until nothing is added: after pids wrap round, a child can be listed before its parent.
    while more := {pid for pid, parent in parents.items() if parent in wanted and pid not in wanted}:
        wanted |= more
    return wanted


def _resident_bytes(pid: int) -> int:
    try:
        text = (_PROC / str(pid) / "statm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(text.split()[1]) * _PAGE


def _used(pid: int) -> float:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    # utime, stime, cutime and cstime. The program's name, in parentheses, may contain spaces.
    return sum(map(int, text[text.rindex(")") + 2 :].split()[11:15])) / _TICKS


def listener(port: int) -> int | None:
    """Return the pid that listens on a TCP port of this machine, the parent's if children share the socket, or None."""
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
