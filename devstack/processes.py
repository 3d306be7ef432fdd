"""Runs our own programs (web server, relay, consumers) for tests and the demo."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from devstack import watcher
from devstack.procinfo import Identity, group_members, read_stat

_GROUP_DEATH_SECONDS = 10.0


def wait_until(condition: Callable[[], object], timeout: float, message: str, interval: float = 0.05) -> None:
    """Call ``condition`` every ``interval`` seconds until it is true.

    Raises TimeoutError with ``message`` when it was not true within ``timeout`` seconds; it is called at
    least once. What the condition raises goes through.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            raise TimeoutError(message)
        time.sleep(interval)


def last_lines(path: Path, count: int) -> str:
    """Return the last ``count`` lines of a text file, or an empty text when there is no such file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            # Logs grow without bound, and no tail asked for here needs more than this.
            file.seek(max(0, size - 1_000 * count))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-count:])


class ManagedProcess:
    """One of our programs, in a session of its own, with its output appended to a log file.

    The program and the workers that it forks form one process group. Nothing of the group outlives
    ``stop``, ``restart`` or the program that called ``start``, not even when that is killed.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str] | None,
        cwd: Path | None,
        log_path: Path,
    ) -> None:
        """Describe the program; nothing is started yet.

        ``env`` is the whole environment and None means this program's own; ``cwd`` likewise.
        """
        self.name = name
        self.argv = list(argv)
        self.env = None if env is None else dict(env)
        self.cwd = cwd
        self.log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._group: Identity | None = None

    def __enter__(self) -> Self:
        """Start the program."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the program."""
        self.stop()

    def start(self) -> None:
        """Start the program.

        Raises RuntimeError when it is running already and OSError when it cannot be executed.
        """
        if self._process is not None and self.poll() is None:
            raise RuntimeError(f"{self.name} is running already (pid {self.pid})")
        self._kill_group()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv,
                env=self.env,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # Not reaped yet, so even a program that ended at once is still listed.
        stat = read_stat(self._process.pid)
        assert stat is not None
        self._group = stat.identity
        _watcher.add(self._group)

    @property
    def pid(self) -> int:
        """The pid of the program last started. Raises RuntimeError when it never was."""
        return self._started().pid

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the program runs."""
        return self._started().poll()

    def wait(self, timeout: float) -> int:
        """Wait for the program to end by itself and return its exit code.

        Raises TimeoutError when it still runs after ``timeout`` seconds.
        """
        try:
            return self._started().wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} (pid {self.pid}) still runs after {timeout} s") from None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the program, not to its workers; do nothing when it has ended."""
        self._started().send_signal(number)

    def kill(self) -> None:
        """End the program by SIGKILL and wait for that; its workers get nothing, as in a real crash."""
        process = self._started()
        process.kill()
        process.wait()

    def stop(self, timeout: float = 10.0) -> int:
        """Ask the program to end by SIGTERM and return its exit code, negative for a signal.

        After ``timeout`` seconds it gets SIGKILL. What is left of its group gets SIGKILL in any case.
        """
        process = self._started()
        process.terminate()
        # A program frozen by SIGSTOP sees SIGTERM only once it goes on.
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
        self._kill_group()
        return process.wait()

    def restart(self, timeout: float = 10.0) -> None:
        """Stop the program and all of its group as ``stop`` does, then start it again."""
        self.stop(timeout)
        self.start()

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the log; an empty text when there is none yet."""
        return last_lines(self.log_path, lines)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process

    def _kill_group(self) -> None:
        group = self._group
        if group is None:
            return
        if group_members(group):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group.pid, signal.SIGKILL)
            wait_until(
                lambda: not group_members(group),
                _GROUP_DEATH_SECONDS,
                f"{self.name}: processes of group {group.pid} do not end",
                interval=0.01,
            )
        _watcher.remove(group)
        self._group = None


class _Watcher:
    """The process that ends our groups when this program is gone; started with the first group."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._groups: set[Identity] = set()
        self._pipe: int | None = None
        self._owner = 0

    def add(self, group: Identity) -> None:
        with self._mutex:
            if self._owner != os.getpid():
                # After a fork the groups and the pipe are the parent's.
                self._groups, self._pipe, self._owner = set(), None, os.getpid()
            self._groups.add(group)
            self._tell(f"+{group.pid} {group.start_time}\n")

    def remove(self, group: Identity) -> None:
        with self._mutex:
            if group in self._groups:
                self._groups.remove(group)
                self._tell(f"-{group.pid}\n")

    def _tell(self, line: str) -> None:
        if self._pipe is not None:
            try:
                os.write(self._pipe, line.encode())
                return
            except BrokenPipeError:
                os.close(self._pipe)
        self._pipe = self._spawn()
        for group in self._groups:
            os.write(self._pipe, f"+{group.pid} {group.start_time}\n".encode())

    def _spawn(self) -> int:
        reading, writing = os.pipe()
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", str(watcher.__file__)],
            {},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, reading, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            # Ctrl-C at the terminal and signals to our group must not reach it.
            setsid=True,
        )
        os.close(reading)
        return writing


_watcher = _Watcher()
