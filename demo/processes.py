"""Runs the processes of the Procfile on this machine, with a supervisor that restarts those that die."""

from __future__ import annotations

import os
import shlex
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from devstack import ManagedProcess, wait_until

_ROOT = Path(__file__).resolve().parents[1]
_POLL_SECONDS = 0.1
_LONGEST_PAUSE = 5.0
_READY_SECONDS = 60.0
# Longer than the web server takes to finish its requests.
_STOP_SECONDS = 25.0


def procfile_process(
    role: str,
    env: Mapping[str, str],
    log_path: Path,
    *,
    name: str = "",
    arguments: Sequence[str] = (),
    root: Path = _ROOT,
) -> ManagedProcess:
    """Return the process ``role`` of the Procfile in the folder ``root``, not started yet.

    ``env`` overrides this program's environment, ``arguments`` are appended to the command and ``name`` is the name of
    the process here, by default its role. Raises KeyError for a role that is not in the Procfile.
    """
    command = f"{_procfile(root)[role]} {shlex.join(arguments)}".rstrip()
    # exec replaces the shell by the program, so that signals reach the program itself.
    line = command if "exec " in command else f"exec {command}"
    # `python` must be the interpreter that runs this program.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return ManagedProcess(name or role, ["sh", "-c", line], {**os.environ, "PATH": path, **env}, root, log_path)


def _procfile(root: Path) -> dict[str, str]:
    lines = (root / "Procfile").read_text().splitlines()
    return {role: command.strip() for role, _, command in (line.partition(":") for line in lines if line.strip())}


def is_ready(port: int) -> bool:
    """Return whether the web process on this port answers 200 at /readyz."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def wait_until_ready(web: ManagedProcess, port: int) -> None:
    """Wait until the web process is ready, at most 60 s. Raises TimeoutError with the end of its log."""
    try:
        wait_until(lambda: is_ready(port), _READY_SECONDS, "")
    except TimeoutError:
        raise TimeoutError(f"the web process is not ready; its log ends with:\n{web.log_tail()}") from None


class Supervisor:
    """Runs processes and restarts those that die. Use it as a context manager; leaving it stops them."""

    def __init__(self, processes: Sequence[ManagedProcess], say: Callable[[str], None]) -> None:
        """``processes`` are stopped in the given order; ``say`` gets a line per process death, from a thread."""
        self._processes = processes
        self._started: list[ManagedProcess] = []
        self._say = say
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self.restarts = 0

    def __enter__(self) -> Supervisor:
        try:
            for process in self._processes:
                process.start()
                self._started.append(process)
        except BaseException:
            self._stop_all()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._stop_all()

    def _stop_all(self) -> None:
        for process in self._started:
            process.stop(_STOP_SECONDS)

    def _watch(self) -> None:
        pauses = dict.fromkeys((process.name for process in self._processes), 0.0)
        while not self._stopping.wait(_POLL_SECONDS):
            for process in self._processes:
                code = process.poll()
                if code is None:
                    continue
                ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                self._say(f"{process.name} (pid {process.pid}) {ended}: starting it again")
                # Exponential backoff: a process that cannot start must not use up the CPU.
                if self._stopping.wait(pauses[process.name]):
                    return
                pauses[process.name] = min(2 * pauses[process.name] + 0.1, _LONGEST_PAUSE)
                process.start()
                self.restarts += 1
