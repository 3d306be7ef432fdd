"""Reads /proc: which processes there are, and whether a remembered one is still the same."""

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
    """A process that cannot be mistaken for a later one with the same pid.

    ``start_time`` is in clock ticks since boot, as the kernel gives it.
    """

    pid: int
    start_time: int


@dataclass(frozen=True)
class ProcessStat:
    """The fields of /proc/<pid>/stat that matter here; ``state`` is the kernel's letter: T stopped, Z ended."""

    pid: int
    state: str
    parent: int
    group: int
    start_time: int

    @property
    def identity(self) -> Identity:
        """What to remember of this process."""
        return Identity(self.pid, self.start_time)


def read_stat(pid: int) -> ProcessStat | None:
    """Return a process's fields, a zombie's too, or None when there is no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses and may itself hold spaces and parentheses.
    fields = text[text.rindex(")") + 2 :].split()
    return ProcessStat(pid, fields[0], int(fields[1]), int(fields[2]), int(fields[19]))


def all_stats() -> Iterator[ProcessStat]:
    """Yield every process that has not ended; a zombie has."""
    for entry in os.listdir(_PROC):
        if entry.isdecimal() and (stat := read_stat(int(entry))) and stat.state not in _ENDED:
            yield stat


def identify(pid: int) -> Identity | None:
    """Return the identity of a process, or None when it has ended."""
    stat = read_stat(pid)
    return stat.identity if stat and stat.state not in _ENDED else None


def is_alive(process: Identity) -> bool:
    """Say whether this very process is still there."""
    return identify(process.pid) == process


def is_stopped(process: Identity) -> bool:
    """Say whether this process was stopped by SIGSTOP."""
    stat = read_stat(process.pid)
    return stat is not None and stat.identity == process and stat.state in "Tt"


def send(process: Identity, number: signal.Signals) -> None:
    """Send a signal to this very process; do nothing when it has ended."""
    if is_alive(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def children(process: Identity) -> list[Identity]:
    """Return the live processes whose parent is this one."""
    return [stat.identity for stat in all_stats() if stat.parent == process.pid]


def find_command(argv: Sequence[str]) -> Identity | None:
    """Return a process whose command line ends with exactly these arguments, or None.

    It "ends with" them because a wrapper that has not yet replaced itself has its own words before them.
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

    Empty when another process has taken the leader's pid since: the kernel gives a pid out again only
    after the last member of its group is gone.
    """
    members = [stat.identity for stat in all_stats() if stat.group == group.pid]
    if any(member.pid == group.pid and member != group for member in members):
        return []
    return members


def reap(process: Identity) -> None:
    """Forget an ended child of this program, which the kernel keeps as a zombie until then.

    Only for children that nothing else waits for; does nothing for another program's child.
    """
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
