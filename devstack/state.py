"""A stack's persistent state: ports, processes and users, in one JSON file."""

import contextlib
import fcntl
import json
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from devstack.errors import DevstackError
from devstack.procinfo import Identity

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,40}")
_RESERVED_NAMES = {"cache"}


@dataclass
class PartRecord:
    """One server: its port, for a Kafka broker also its controller's port, and its last known process."""

    port: int = 0
    controller_port: int = 0
    process: Identity | None = None


@dataclass
class StackState:
    """The persistent state of one stack.

    ``keep`` is set by ``up``: the stack stays up after the last ``run`` has ended. ``users`` are the ``run``
    commands that use it now. ``password`` is PostgreSQL's and ``cluster_id`` is Kafka's.
    """

    brokers: int = 1
    password: str = ""
    cluster_id: str = ""
    keep: bool = False
    users: list[Identity] = field(default_factory=list)
    parts: dict[str, PartRecord] = field(default_factory=dict)


class StateFile:
    """Loads and saves a stack's state; only the holder of its lock may change it."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is the stack's; the lock file is beside it, because it must survive wiping the folder."""
        self.path = folder / "state.json"
        self._lock_path = folder.parent / f"{folder.name}.lock"
        self._mutex = threading.Lock()

    @contextlib.contextmanager
    def locked(self, on_wait: Callable[[], None]) -> Iterator[StackState]:
        """Hold the stack's lock, across threads and processes, and yield its state; save it at the end.

        ``on_wait`` is called once if another command holds the lock.
        """
        with exclusive(self._lock_path, on_wait):
            state = self.load()
            # Created once: the data folders are made with them.
            state.password = state.password or secrets.token_urlsafe(18)
            # Kafka expects 16 bytes in base64; its tools would read a leading "-" as an option.
            state.cluster_id = state.cluster_id or "k" + secrets.token_urlsafe(16)[1:]
            try:
                yield state
            finally:
                self.save(state)

    def load(self) -> StackState:
        """Return the saved state, or a new one if there is none.

        Raises DevstackError if the file does not have this version's format.
        """
        try:
            return _from_json(json.loads(self.path.read_text()))
        except FileNotFoundError:
            return StackState()
        except (ValueError, KeyError, TypeError):
            raise DevstackError(
                f"{self.path} is damaged: end the servers it names and remove {self.path.parent}"
            ) from None

    def save(self, state: StackState) -> None:
        """Replace the saved state atomically, readable by its owner only."""
        with self._mutex:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(".tmp")
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(asdict(state), file, indent=2)
            temporary.replace(self.path)


def check_name(name: str) -> None:
    """Raise DevstackError if ``name`` is not a valid stack name."""
    if not _NAME.fullmatch(name) or name in _RESERVED_NAMES:
        raise DevstackError(f"{name!r} cannot name a stack: use small letters, digits, '-' and '_', and not 'cache'")


@contextlib.contextmanager
def exclusive(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive lock on a file, waiting for it if needed; the kernel releases it when the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _from_json(document: dict[str, Any]) -> StackState:
    parts = {
        name: PartRecord(part["port"], part["controller_port"], _identity(part["process"]))
        for name, part in document["parts"].items()
    }
    users = [Identity(**user) for user in document["users"]]
    return StackState(**{**document, "parts": parts, "users": users})


def _identity(document: dict[str, int] | None) -> Identity | None:
    return Identity(**document) if document else None
