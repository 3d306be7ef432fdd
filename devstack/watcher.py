"""Ends process groups when the program that started them has ended, for whatever reason.

Runs as a separate script beside that program, with the reading end of a pipe as its standard input. A line
``+PGID START_TIME`` adds a group and ``-PGID`` removes it; when the pipe closes or the parent changes, the remaining
groups get SIGKILL. The kernel's parent-death signal is not enough: it reaches only the direct child, not that child's
workers, and it fires when the *thread* that started the child ends.
"""

import contextlib
import os
import select
import signal

_PARENT_CHECK_SECONDS = 0.5


def start_time(pid: int) -> str | None:
    """Return a process's start time in clock ticks since boot, as text, or None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as stat:
            text = stat.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()[19]


def watch(descriptor: int) -> dict[int, str]:
    """Read the pipe until the parent has ended; return the remaining groups, pgid to start time."""
    parent = os.getppid()
    groups: dict[int, str] = {}
    pending = b""
    while os.getppid() == parent:
        # The timeout, because a process forked from the parent may keep the pipe open after the parent's death.
        readable, _, _ = select.select([descriptor], [], [], _PARENT_CHECK_SECONDS)
        if not readable:
            continue
        chunk = os.read(descriptor, 4096)
        if not chunk:
            break
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            group, _, started = line[1:].decode().partition(" ")
            if line.startswith(b"+"):
                groups[int(group)] = started
            else:
                groups.pop(int(group), None)
    return groups


def kill_groups(groups: dict[int, str]) -> None:
    """Send SIGKILL to each group unless another process has its leader's pid."""
    for group, started in groups.items():
        if start_time(group) in (None, started):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    kill_groups(watch(0))
