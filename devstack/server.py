"""The base class of PostgreSQL, Redis and Kafka brokers as processes on this machine."""

import os
import signal
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from devstack import procinfo
from devstack.errors import DevstackError
from devstack.processes import last_lines, wait_until
from devstack.procinfo import Identity

# Three brokers that start at once on a busy machine with two cores take more than a minute.
START_SECONDS = 120.0
_KILL_SECONDS = 10.0


def run_tool(argv: Sequence[str], failure: str) -> None:
    """Run a program to its end. If it fails, raise DevstackError: ``failure`` and the last line of its output."""
    result = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()[-1]
        raise DevstackError(f"{failure}: {reason}")


class Server(ABC):
    """One server: how to prepare, start, check and stop it. It knows its folders, not the stack's state."""

    stop_signal = signal.SIGTERM
    stop_seconds = 10.0

    def __init__(self, name: str, stack_folder: Path, port: int) -> None:
        """``name`` is the part's, for example ``kafka-1``; data folder and log are named after it."""
        self.name = name
        self.port = port
        self.folder = stack_folder / "data" / name
        self.log_path = stack_folder / "logs" / f"{name}.log"

    @abstractmethod
    def prepare(self) -> None:
        """Prepare the data folder, also after a crash; called while the server is down."""

    @abstractmethod
    def command(self) -> list[str]:
        """Return the server's own command line, without ``wrapper``."""

    @abstractmethod
    def answers(self) -> bool:
        """Send the server a real request and return whether it answered."""

    def wrapper(self) -> list[str]:
        """Return a command prefix that execs the server, so that the pid stays; empty by default."""
        return []

    def signature(self) -> list[str]:
        """Return the end of the command line, by which an unrecorded server is found."""
        return self.command()

    def environment(self) -> Mapping[str, str]:
        """Return the server's environment."""
        return os.environ

    def find(self, recorded: Identity | None) -> Identity | None:
        """Return the running server: the recorded one, or one whose starter died before recording it."""
        if recorded and procinfo.is_alive(recorded):
            return recorded
        if not self.folder.exists():
            return None
        return procinfo.find_command(self.signature())

    def spawn(self) -> Identity:
        """Start the server in a new session and return at once; its output goes to the log."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        argv = [*self.wrapper(), *self.command()]
        log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            pid = os.posix_spawnp(
                argv[0],
                argv,
                self.environment(),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(self.log_path), log_flags, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                # Ctrl-C at the terminal must not reach it, nor may it inherit ignored or blocked signals.
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP],
            )
        except OSError as error:
            raise DevstackError(f"cannot execute {argv[0]}: {error.strerror}") from None
        stat = procinfo.read_stat(pid)
        assert stat is not None, "a child is listed until it is waited for"
        return stat.identity

    def wait_ready(self, process: Identity, cancelled: threading.Event) -> None:
        """Wait until the server answers.

        Raises DevstackError if it ended, if it does not answer in time, and soon after ``cancelled`` is set.
        """

        def ready() -> bool:
            if cancelled.is_set():
                raise DevstackError(f"{self.name}: interrupted; run `up` or `down` next")
            if self.answers():
                return True
            if not procinfo.is_alive(process):
                procinfo.reap(process)
                ending = last_lines(self.log_path, 1) or "no output"
                raise DevstackError(f"{self.name} ended while starting; {self.log_path} ends with: {ending}")
            return False

        try:
            wait_until(
                ready,
                START_SECONDS,
                f"{self.name} (pid {process.pid}) does not answer after {START_SECONDS:.0f} s; "
                f"see {self.log_path} or start over with `down`",
            )
        except TimeoutError as error:
            raise DevstackError(str(error)) from None

    def stop(self, process: Identity) -> None:
        """Send the stop signal and wait; use SIGKILL after ``stop_seconds``."""
        procinfo.send(process, self.stop_signal)
        self.thaw(process)
        try:
            wait_until(lambda: not procinfo.is_alive(process), self.stop_seconds, "")
        except TimeoutError:
            self.kill(process)
        procinfo.reap(process)

    def kill(self, process: Identity) -> None:
        """End the server and its helper processes by SIGKILL and wait until they have ended."""
        members = self._with_helpers(process)
        for member in members:
            procinfo.send(member, signal.SIGKILL)
        try:
            wait_until(
                lambda: not any(map(procinfo.is_alive, members)),
                _KILL_SECONDS,
                f"{self.name} (pid {process.pid}) does not end on SIGKILL; see /proc/{process.pid}/stack",
                interval=0.01,
            )
        except TimeoutError as error:
            raise DevstackError(str(error)) from None
        procinfo.reap(process)

    def freeze(self, process: Identity) -> None:
        """Stop the server and its helpers by SIGSTOP: connections stay open and get no answer."""
        # The server first, so that it cannot start another helper meanwhile.
        procinfo.send(process, signal.SIGSTOP)
        wait_until(
            lambda: procinfo.is_stopped(process) or not procinfo.is_alive(process),
            _KILL_SECONDS,
            f"{self.name} does not stop",
            interval=0.005,
        )
        for member in self._with_helpers(process):
            procinfo.send(member, signal.SIGSTOP)

    def thaw(self, process: Identity) -> None:
        """Resume a frozen server by SIGCONT; no effect on one that is not frozen."""
        for member in self._with_helpers(process):
            procinfo.send(member, signal.SIGCONT)

    def _with_helpers(self, process: Identity) -> list[Identity]:
        return [process, *procinfo.children(process)]
