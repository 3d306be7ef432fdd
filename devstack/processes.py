"""Runs the service's own programs (web server, relay, consumers) for tests and the demo."""

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

    ``condition`` is called at least once. Raises TimeoutError with ``message`` if it is not true within ``timeout``
    seconds, and what ``condition`` raises.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            raise TimeoutError(message)
        time.sleep(interval)


def last_lines(path: Path, count: int) -> str:
    """Return the last ``count`` lines of a text file, or an empty string if there is no such file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            # Logs grow without bound; 1,000 bytes per line are enough for the logs read here.
            file.seek(max(0, size - 1_000 * count))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-count:])


class ManagedProcess:
    """A program in its own session, with its output appended to a log file.

    The program and its forked workers form one process group. The group ends with ``stop``, ``restart`` or the end of
    the program that called ``start``, even if that is killed.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str] | None,
        cwd: Path | None,
        log_path: Path,
    ) -> None:
        """Describe the program; start nothing.

        ``env`` is the complete environment, None that of this program; ``cwd`` None is this program's folder.
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

        Raises RuntimeError if it is running already and OSError if it cannot be executed.
        """
        if self.is_running():
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
        # Not reaped yet, so a program that ended at once is still listed in /proc.
        stat = read_stat(self._process.pid)
        assert stat is not None
        self._group = stat.identity
        _watcher.add(self._group)

    @property
    def pid(self) -> int:
        """The pid of the program last started. Raises RuntimeError if it was never started."""
        return self._started().pid

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the program runs."""
        return self._started().poll()

    def is_running(self) -> bool:
        """Whether the program was started and has not ended."""
        return self._process is not None and self.poll() is None

    def wait(self, timeout: float) -> int:
        """Wait for the program to end and return its exit code.

        Raises TimeoutError if it still runs after ``timeout`` seconds.
        """
        try:
            return self._started().wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} (pid {self.pid}) still runs after {timeout} s") from None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the program, not to its workers; do nothing if it has ended."""
        self._started().send_signal(number)

    def kill(self) -> None:
        """End the program by SIGKILL and wait; its workers get no signal, as in a real crash."""
        process = self._started()
        process.kill()
        process.wait()

    def stop(self, timeout: float = 10.0) -> int:
        """End the program by SIGTERM and return its exit code, negative for a signal.

        After ``timeout`` seconds it gets SIGKILL. Remaining processes of its group always get SIGKILL.
        """
        process = self._started()
        process.terminate()
        # A program stopped by SIGSTOP handles SIGTERM only after SIGCONT.
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
        self._kill_group()
        return process.wait()

    def restart(self, timeout: float = 10.0) -> None:
        """Stop the program and its group as ``stop`` does, then start it again."""
        self.stop(timeout)
        self.start()

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the log; empty if there is none yet."""
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
    """The process that ends the process groups when this program has ended; started with the first group."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._groups: set[Identity] = set()
        self._pipe: int | None = None
        self._owner = 0

    def add(self, group: Identity) -> None:
        with self._mutex:
            if self._owner != os.getpid():
                # After a fork the groups and the pipe belong to the parent.
                self._groups, self._pipe, self._owner = set(), None, os.getpid()
            self._groups.add(group)
            self._send(f"+{group.pid} {group.start_time}\n")

    def remove(self, group: Identity) -> None:
        with self._mutex:
            if group in self._groups:
                self._groups.remove(group)
                self._send(f"-{group.pid}\n")

    def _send(self, line: str) -> None:
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
            # Ctrl-C at the terminal and signals to this process group must not reach it.
            setsid=True,
        )
        os.close(reading)
        return writing


_watcher = _Watcher()
