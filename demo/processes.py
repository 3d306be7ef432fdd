"""Runs the processes of the Procfile on this machine, with a supervisor that restarts those that die."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from devstack import ManagedProcess, wait_until

_ROOT = Path(__file__).resolve().parents[1]
_POLL_SECONDS = 0.1
# Answered by the site, without a query.
_SITE_PATH = "/api/ready"
_LONGEST_PAUSE = 5.0
_READY_SECONDS = 120.0
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


class WebProcess(ManagedProcess):
    """The Procfile's ``web``, with a ``site`` behind it that is started and stopped with it.

    Signals, exit codes and the log are those of ``web``; ``site`` is the other process.
    """

    def __init__(self, env: Mapping[str, str], log_path: Path, *, name: str = "web") -> None:
        """``env`` and ``log_path`` as for ``procfile_process``; the site's log is beside it."""
        # The path of a socket has at most 107 bytes, which folders of tests exceed.
        self.site_socket = f"{tempfile.gettempdir()}/site-{secrets.token_hex(8)}.sock"
        with_socket = {**env, "SITE_SOCKET": self.site_socket}
        self.site = procfile_process("site", with_socket, log_path.with_name(f"site-of-{log_path.name}"))
        web = procfile_process("web", with_socket, log_path)
        super().__init__(name, web.argv, web.env, web.cwd, log_path)

    def start(self) -> None:
        """Start web, and the site unless it runs."""
        if not self.site.is_running():
            self.site.start()
        super().start()

    def stop(self, timeout: float = 10.0) -> int:
        """Stop both; returns the exit code of web."""
        code = super().stop(timeout)
        self.site.stop(timeout)
        Path(self.site_socket).unlink(missing_ok=True)
        return code


def _procfile(root: Path) -> dict[str, str]:
    lines = (root / "Procfile").read_text().splitlines()
    return {role: command.strip() for role, _, command in (line.partition(":") for line in lines if line.strip())}


def is_ready(port: int) -> bool:
    """Return whether the web process on this port is ready, and the site behind it answers."""
    return _status(port, "/readyz") == 200 and _status(port, _SITE_PATH) == 404


def _status(port: int, path: str) -> int:
    """Return the status of a GET; 0 without an answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, OSError):
        return 0


def wait_until_ready(web: ManagedProcess, port: int) -> None:
    """Wait until the web process is ready, at most 120 s. Raises TimeoutError with the end of its log."""
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
