"""What every run of the demo needs around it: tables, topics, a login, processes, and the invariants at the end."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import CommandError
from rich.console import Console

from common.processes.lifecycle import StopFlag, check_database, first_line, wait_for
from common.processes.outages import ServiceUnavailable
from demo.processes import Supervisor, WebProcess, wait_until_ready
from devstack import ManagedProcess
from devstack.ports import free_port, is_free
from kafka_bridge.client import check_kafka, delete_topics, ensure_topics

_ADMIN_NAME = "demo-admin"
_SERVICE_SECONDS = 30.0
_USUAL_PORT = 8000
# No process of the Procfile has this name.
_OWN_LOG = "runner"


@dataclass(frozen=True, slots=True)
class Login:
    name: str
    password: str


class DemoEnvironment:
    """Prepares the services for a run; stops processes and deletes topics however the run ends."""

    def __init__(self, log_folder: Path, console: Console) -> None:
        """``log_folder`` gets a log per process."""
        self.log_folder = log_folder
        self.console = console

    def say(self, line: str) -> None:
        """Print a line as it is, without markup and without wrapping."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def log(self, name: str) -> Path:
        """Return the path of a process's log, without the file of an earlier run."""
        path = self.log_folder / f"{name}.log"
        path.unlink(missing_ok=True)
        return path

    def log_own_lines(self, printed: int) -> None:
        """Log what this process logs to a file beside those of the others, and print it from the level ``printed``."""
        root = logging.getLogger()
        self.log_folder.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(self.log(_OWN_LOG))
        for handler in root.handlers:
            handler.setLevel(printed)
            file.setFormatter(handler.formatter)
        root.addHandler(file)

    def prepare(self) -> Login:
        """Migrate the database and make the operator's login. Raises ServiceUnavailable if it does not answer."""
        self.say("migrating the database")
        wait_for(check_database, _SERVICE_SECONDS, StopFlag())
        call_command("migrate", verbosity=0, interactive=False)
        return _make_admin_login()

    @contextmanager
    def topics(self) -> Iterator[None]:
        """Create the missing topics, and delete those at the end. Raises ServiceUnavailable."""
        self.say("creating the topics")
        wait_for(check_kafka, _SERVICE_SECONDS, StopFlag())
        created, complaints = ensure_topics(settings.KAFKA_ROUTES)
        try:
            if complaints:
                raise ServiceUnavailable("; ".join(complaints))
            yield
        finally:
            try:
                delete_topics(created)
            except ServiceUnavailable as error:
                self.say(first_line(error))

    @contextmanager
    def running(self, web: WebProcess, others: Sequence[ManagedProcess], port: int) -> Iterator[None]:
        """Run the processes under a supervisor, yield when ``web`` is ready on ``port``, and stop them at the end.

        Raises TimeoutError when the web process does not get ready.
        """
        names = ", ".join(process.name for process in (web, web.site, *others))
        self.say(f"starting {names}; their logs are in {self.log_folder}")
        with Supervisor([web.site, web, *others], self.say):
            wait_until_ready(web, port)
            yield
            self.say("stopping")

    def invariants_hold(self) -> bool:
        """Run ``check_invariants``, print its lines and return whether all of them hold."""
        output = StringIO()
        try:
            call_command("check_invariants", stdout=output)
        except CommandError as error:
            self.say(output.getvalue().rstrip())
            self.say(f"verdict: {error}")
            return False
        self.say(output.getvalue().rstrip())
        return True

    def stay(self, port: int, login: Login) -> None:
        """Print the addresses and serve until interrupted."""
        site = f"http://localhost:{port}"
        self.say(f"shopper's page  {site}/")
        self.say(f"admin           {site}/admin/    name {login.name}, password {login.password}")
        self.say(f"operators       {site}/ops/      with the same login")
        self.say(f"API             {site}/api/docs")
        self.say("Ctrl-C ends it; until then, `kill -9` any process and see it restart")
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(1)


def choose_web_port() -> int:
    """Return the port in ``PORT``, else 8000 or, if that is taken, a free one. Raises ServiceUnavailable."""
    wanted = os.environ.get("PORT", "")
    if not wanted:
        return _USUAL_PORT if is_free(_USUAL_PORT) else free_port()
    if not (wanted.isascii() and wanted.isdigit() and is_free(int(wanted))):
        raise ServiceUnavailable(f"PORT {wanted} is in use or not a port number: choose another, or leave it unset")
    return int(wanted)


def _make_admin_login() -> Login:
    # On a database of an earlier run the user exists: it gets a new password.
    login = Login(_ADMIN_NAME, secrets.token_urlsafe(9))
    user, _ = get_user_model().objects.get_or_create(username=login.name)
    user.is_staff = user.is_superuser = True
    user.set_password(login.password)
    user.save()
    return login
