"""The processes of the Procfile, run on the test database."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from django.conf import settings
from django.db import connection

from demo.processes import WebProcess, procfile_process
from devstack import ManagedProcess

_COMMAND_SECONDS = 120.0
_ROOT = Path(__file__).resolve().parents[2]


def environment(**changes: str) -> dict[str, str]:
    """What a process needs in order to work on the services, topics and tables of the running test."""
    database = connection.settings_dict
    login = f"{quote(database['USER'])}:{quote(database['PASSWORD'])}"
    return {
        "DATABASE_URL": f"postgres://{login}@{database['HOST']}:{database['PORT']}/{database['NAME']}",
        "REDIS_URL": settings.REDIS_URL,
        "KAFKA_BOOTSTRAP_SERVERS": settings.KAFKA_BOOTSTRAP_SERVERS,
        "KAFKA_TOPIC_PREFIX": settings.KAFKA_TOPIC_PREFIX,
        # The shortest that the broker allows: how soon the partitions of a killed consumer get another.
        "KAFKA_CONSUMER_CONFIG": '{"session.timeout.ms": 6000}',
        "SECRET_KEY": settings.SECRET_KEY,
        "DEBUG": "",
        "ALERT_END_SECONDS": "0",
        **changes,
    }


class Service:
    """The processes of one test: started by name, all ended by ``end``."""

    def __init__(self, log_folder: Path, env: Mapping[str, str], *, root: Path = _ROOT) -> None:
        """``root`` is the folder of the code: that of this version unless given."""
        self._log_folder = log_folder
        self._env = env
        self._root = root
        self.processes: dict[str, ManagedProcess] = {}

    def start(self, role: str, *arguments: str, name: str = "") -> ManagedProcess:
        """Start a process of the Procfile; ``name`` tells apart several of one role."""
        name = name or role
        log_path = self._log_folder / f"{name}.log"
        process = (
            WebProcess(self._env, log_path, name=name)
            if role == "web" and self._root == _ROOT
            else procfile_process(role, self._env, log_path, name=name, arguments=arguments, root=self._root)
        )
        self.processes[name] = process
        process.start()
        return process

    def start_command(self, *arguments: str, name: str) -> ManagedProcess:
        """Start a command of ``manage.py`` that runs until it is stopped."""
        process = ManagedProcess(
            name,
            [sys.executable, "manage.py", *arguments],
            {**os.environ, **self._env},
            self._root,
            self._log_folder / f"{name}.log",
        )
        self.processes[name] = process
        process.start()
        return process

    def run(self, *arguments: str) -> int:
        """Run a command of ``manage.py`` to its end and return its exit code."""
        return self.command(*arguments).returncode

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of ``manage.py`` to its end."""
        return run_command(*arguments, env=self._env, root=self._root)

    def end(self) -> None:
        """End everything; the ends of the logs are printed, which pytest shows for a failed test."""
        for process in self.processes.values():
            process.stop()
            print(f"--- {process.name}\n{process.log_tail(40)}")
            if isinstance(process, WebProcess):
                print(f"--- {process.site.name}\n{process.site.log_tail(40)}")


def kill_group(process: ManagedProcess) -> None:
    """SIGKILL to a process and its workers at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def run_command(*arguments: str, env: Mapping[str, str], root: Path = _ROOT) -> subprocess.CompletedProcess[str]:
    """Run ``manage.py`` in the folder ``root`` to its end."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        env={**os.environ, **env},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=_COMMAND_SECONDS,
        check=False,
    )
