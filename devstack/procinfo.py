"""Reads /proc: lists processes, and checks whether a recorded process still runs."""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_ENDED = "ZX"


@dataclass(frozen=True)
class Identity:
    """Identifies a process, also against a later one with the same pid.

    ``start_time`` is in clock ticks since boot, as in /proc/<pid>/stat.
    """

    pid: int
    start_time: int


@dataclass(frozen=True)
class ProcessStat:
    """The used fields of /proc/<pid>/stat; ``state`` is the kernel's letter: T stopped, Z ended."""

    pid: int
    state: str
    parent: int
    group: int
    start_time: int

    @property
    def identity(self) -> Identity:
        """The identity by which to record this process."""
        return Identity(self.pid, self.start_time)


def read_stat(pid: int) -> ProcessStat | None:
    """Return the fields of a process, including a zombie, or None if there is no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses, which may contain spaces and parentheses.
    fields = text[text.rindex(")") + 2 :].split()
    return ProcessStat(pid, fields[0], int(fields[1]), int(fields[2]), int(fields[19]))


def all_stats() -> Iterator[ProcessStat]:
    """Yield every process except zombies."""
    for entry in os.listdir(_PROC):
        if entry.isdecimal() and (stat := read_stat(int(entry))) and stat.state not in _ENDED:
            yield stat


def identify(pid: int) -> Identity | None:
    """Return the identity of a process, or None if it has ended."""
    stat = read_stat(pid)
    return stat.identity if stat and stat.state not in _ENDED else None


def is_alive(process: Identity) -> bool:
    """Return whether exactly this process still runs."""
    return identify(process.pid) == process


def is_stopped(process: Identity) -> bool:
    """Return whether this process is stopped by SIGSTOP."""
    stat = read_stat(process.pid)
    return stat is not None and stat.identity == process and stat.state in "Tt"


def send(process: Identity, number: signal.Signals) -> None:
    """Send a signal to exactly this process; do nothing if it has ended."""
    if is_alive(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def children(process: Identity) -> list[Identity]:
    """Return the live processes whose parent is this one."""
    return [stat.identity for stat in all_stats() if stat.parent == process.pid]


def find_command(argv: Sequence[str]) -> Identity | None:
    """Return a process whose command line ends with exactly these arguments, or None.

    A wrapper that has not yet replaced itself by the program has its own arguments before these.
    """
    wanted = [os.fsencode(argument) for argument in argv]
    for stat in all_stats():
        try:
            command = (_PROC / str(stat.pid) / "cmdline").read_bytes().split(b"\0")[:-1]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if command[-len(wanted) :] == wanted:
            return stat.identity
    return None


def running_in(directory: Path, program: str) -> list[Identity]:
    """Return the processes of a program (by its file's name) whose working folder is ``directory``."""
    found = []
    for stat in all_stats():
        folder = _PROC / str(stat.pid)
        try:
            same_folder = os.readlink(folder / "cwd") == str(directory.resolve())
            if same_folder and Path(os.readlink(folder / "exe")).name == program:
                found.append(stat.identity)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def group_members(group: Identity) -> list[Identity]:
    """Return the live processes of the group whose leader is, or was, ``group``.

    Empty if another process has the leader's pid now: the kernel reuses a pid only after the last member of its group
    has ended.
    """
    members = [stat.identity for stat in all_stats() if stat.group == group.pid]
    if any(member.pid == group.pid and member != group for member in members):
        return []
    return members


def reap(process: Identity) -> None:
    """Reap a child of this program if it has ended, so that it does not remain a zombie.

    Only for children that no other code waits for; does nothing for other programs' children.
    """
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
