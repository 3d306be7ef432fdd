"""A named stack of servers: its parts, and how to start and stop them together."""

import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from devstack import procinfo
from devstack.addresses import DATABASE_URL, KAFKA_BOOTSTRAP_SERVERS, REDIS_URL, Addresses
from devstack.broker_wishes import MAX_BROKERS, wanted_brokers, wanted_ports
from devstack.errors import DevstackError
from devstack.kafka.broker import BrokerPorts, KafkaBroker, wait_for_cluster
from devstack.ports import LOOPBACK, free_port, is_free, wait_free
from devstack.postgres import PostgresServer, postgres_url
from devstack.processes import last_lines
from devstack.procinfo import Identity
from devstack.redis import RedisServer, redis_url
from devstack.server import Server
from devstack.state import PartRecord, StackState, StateFile, check_name

PROJECT_ROOT = Path(__file__).resolve().parents[1]
POSTGRES = "postgres"
REDIS = "redis"

Condition = Literal["running", "frozen", "stopped", "external"]


@dataclass(frozen=True)
class PartStatus:
    """Status of a part; an ``external`` one is named by the environment ``variable`` and has neither pid nor port."""

    name: str
    condition: Condition
    pid: int | None = None
    port: int | None = None
    variable: str | None = None


class Stack:
    """A PostgreSQL, a Redis and a Kafka cluster that belong together under one name.

    Services that the environment names are used and neither started nor stopped. Several programs may use the same
    stack; each call holds the stack's lock while it changes something.
    """

    def __init__(
        self,
        name: str = "dev",
        brokers: int | None = None,
        *,
        root: Path = PROJECT_ROOT,
        environ: Mapping[str, str] | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        """Describe a stack; start nothing.

        ``brokers`` None means as many as the stack has; when its brokers are new, as many as ``DEVSTACK_BROKERS`` says,
        or one. The stack's files lie in ``root/.devstack/name``. ``environ`` is where named services and wishes for
        new brokers are looked up, by default this program's environment; ``{}`` makes the stack start every server.
        ``report`` gets lines of progress, by default on standard error. Raises DevstackError for a name or a number
        that cannot be.
        """
        if brokers is not None and not 1 <= brokers <= MAX_BROKERS:
            raise DevstackError(f"a stack has 1 to {MAX_BROKERS} brokers, not {brokers}")
        # Checked before it becomes part of a path.
        check_name(name)
        self.name = name
        self.folder = root.resolve() / ".devstack" / name
        self._brokers = brokers
        self._environ = os.environ if environ is None else environ
        self._report = report or _report_to_stderr
        self._file = StateFile(self.folder)

    def up(self) -> Addresses:
        """Start what is not running, wait until all of it answers and return the addresses.

        The stack then stays up until ``down``. Raises DevstackError if a server cannot be started; the others stay up.
        """
        with self._locked() as state:
            state.keep = True
            return self._up(state)

    def down(self, wipe: bool = False) -> None:
        """Stop every server of the stack, whichever program started it; ``wipe`` then deletes data and logs."""
        with self._locked() as state:
            self._down(state, wipe=wipe)

    @contextlib.contextmanager
    def used(self, fresh: bool = False) -> Iterator[Addresses]:
        """Start the stack if needed, yield its addresses and stop it at the end.

        It stays up at the end if ``up`` started it or another user remains; killed users do not count. ``fresh``
        deletes the data first and raises DevstackError if the stack is up.
        """
        me = procinfo.identify(os.getpid())
        assert me is not None
        try:
            with self._locked() as state:
                self._forget_ended_users(state)
                if fresh:
                    if state.keep or state.users:
                        users = ", ".join(str(user.pid) for user in state.users) or "none, `up` started it"
                        raise DevstackError(
                            f"stack {self.name!r} is up (used by pid {users}): end what uses it, or "
                            f"`python -m devstack down --name {self.name}`, before it is made anew"
                        )
                    self._down(state, wipe=True)
                state.users.append(me)
                # Saved before anything starts, so that a killed user is recognised as ended.
                self._file.save(state)
                addresses = self._up(state)
            yield addresses
        finally:
            with self._locked() as state:
                # Absent if the start failed before it was added, or if `down` stopped the stack meanwhile.
                if me in state.users:
                    state.users.remove(me)
                    self._forget_ended_users(state)
                    if not state.keep and not state.users:
                        self._down(state, wipe=False)

    def status(self) -> list[PartStatus]:
        """Return each part's status, PostgreSQL first and the brokers last."""
        state = self._file.load()
        external = self._external(state)
        kafka = ["kafka"] if KAFKA_BOOTSTRAP_SERVERS in external else _broker_names(state)
        return [self._part_status(state, external, name) for name in (POSTGRES, REDIS, *kafka)]

    def log_paths(self) -> dict[str, Path]:
        """Return each part's log file, which exists once the part was started."""
        names = [POSTGRES, REDIS, *_broker_names(self._file.load())]
        return {name: self.folder / "logs" / f"{name}.log" for name in names}

    def part(self, name: str) -> "Part":
        """Return a handle on one part: ``postgres``, ``redis`` or ``kafka-1`` and so on.

        Raises DevstackError when the stack has no such part, or uses one that the environment names.
        """
        state = self._file.load()
        if name not in state.parts:
            known = ", ".join(state.parts) or "none before it was up"
            raise DevstackError(f"stack {self.name!r} has no part {name!r}: choose one of {known}")
        if variable := _variable_of(name, self._external(state)):
            raise DevstackError(f"{name} is external, named by {variable}: unset it to let the stack start its own")
        return Part(self, name)

    def _up(self, state: StackState) -> Addresses:
        self._set_brokers(state)
        external = self._external(state)
        for variable in external:
            self._report(f"{variable} is set: its service is used and not started")
        names = [
            *([] if DATABASE_URL in external else [POSTGRES]),
            *([] if REDIS_URL in external else [REDIS]),
            *([] if KAFKA_BOOTSTRAP_SERVERS in external else _broker_names(state)),
        ]
        self._assign_ports(state, names)
        cancelled = threading.Event()
        with ThreadPoolExecutor(max_workers=len(names) or 1) as pool:
            futures = [pool.submit(self._start, state, name, cancelled) for name in names]
            try:
                for future in futures:
                    future.result()
                brokers = [self._server(state, name) for name in names if name.startswith("kafka-")]
                wait_for_cluster([broker for broker in brokers if isinstance(broker, KafkaBroker)])
            except BaseException:
                cancelled.set()
                raise
        return _addresses(state, external)

    def _down(self, state: StackState, *, wipe: bool) -> None:
        running = self._running(state)
        with ThreadPoolExecutor(max_workers=len(running) or 1) as pool:
            for name, process in running.items():
                self._report(f"{name}: stopping")
                pool.submit(self._server(state, name).stop, process)
        for record in state.parts.values():
            record.process = None
        state.keep, state.users = False, []
        if running := self._running(state):
            raise DevstackError(f"still running: {', '.join(running)}; run `down` again")
        if wipe:
            shutil.rmtree(self.folder / "data", ignore_errors=True)
            shutil.rmtree(self.folder / "logs", ignore_errors=True)
            # Ports and password are kept: addresses exported in a shell stay valid.

    def _start(self, state: StackState, name: str, cancelled: threading.Event) -> None:
        server = self._server(state, name)
        process = server.find(state.parts[name].process)
        if process is None:
            self._report(f"{name}: starting on port {server.port}")
            server.prepare()
            if cancelled.is_set():
                return
            process = server.spawn()
        # Saved before it is ready: if this program is killed, the next command must know the process.
        state.parts[name].process = process
        self._file.save(state)
        server.thaw(process)
        server.wait_ready(process, cancelled)

    def _server(self, state: StackState, name: str) -> Server:
        port = state.parts[name].port
        if name == POSTGRES:
            return PostgresServer(name, self.folder, port, state.password)
        if name == REDIS:
            return RedisServer(name, self.folder, port)
        records = [state.parts.get(broker, PartRecord()) for broker in _broker_names(state)]
        ports = [BrokerPorts(record.port, record.controller_port) for record in records]
        number = int(name.removeprefix("kafka-"))
        return KafkaBroker(name, self.folder, number, ports, state.cluster_id, self._report)

    def _running(self, state: StackState) -> dict[str, Identity]:
        found = {name: self._server(state, name).find(state.parts[name].process) for name in state.parts}
        return {name: process for name, process in found.items() if process}

    def _set_brokers(self, state: StackState) -> None:
        are_new = not (self.folder / "data" / "kafka-1").exists()
        wish = wanted_brokers(self._environ)
        wanted = self._brokers or (wish if are_new and wish else state.brokers)
        if not (are_new or self._brokers) and wish not in (None, state.brokers):
            self._report(
                f"stack {self.name!r} keeps its {state.brokers} broker(s), not the {wish} of DEVSTACK_BROKERS: to have "
                f"those, `python -m devstack down --wipe --name {self.name}` first, or set another DEVSTACK_NAME"
            )
        if are_new and KAFKA_BOOTSTRAP_SERVERS not in self._external(state):
            self._wish_ports(state, wanted)
        if wanted == state.brokers:
            return
        if not are_new:
            raise DevstackError(
                f"stack {self.name!r} has {state.brokers} broker(s) and keeps them: "
                f"`down --wipe --name {self.name}` first to have {wanted}"
            )
        state.brokers = wanted
        for name in [name for name in state.parts if name.startswith("kafka-")]:
            if name not in _broker_names(state):
                del state.parts[name]

    def _wish_ports(self, state: StackState, brokers: int) -> None:
        """Record the ports that the environment names for new brokers, without those that are taken."""
        ports = wanted_ports(self._environ, brokers)
        taken = {part.port for name, part in state.parts.items() if not name.startswith("kafka-")}
        for number, port in enumerate(ports, start=1):
            if port not in taken and is_free(port):
                state.parts[f"kafka-{number}"] = PartRecord(port)
            else:
                self._report(f"kafka-{number}: port {port} is taken, a free one is used instead")
                state.parts[f"kafka-{number}"] = PartRecord()

    def _assign_ports(self, state: StackState, names: list[str]) -> None:
        """Assign each part that is down its recorded ports, or new ones if those are taken."""
        for name in names:
            state.parts.setdefault(name, PartRecord())
        running = self._running(state)
        moved = False
        for name in names:
            record = state.parts[name]
            if name in running:
                continue
            taken = {port for part in state.parts.values() for port in (part.port, part.controller_port)}
            if not record.port or not wait_free(record.port):
                record.port = free_port(taken)
                moved = True
            if name.startswith("kafka-") and (not record.controller_port or not wait_free(record.controller_port)):
                record.controller_port = free_port({*taken, record.port})
                moved = True
        brokers = [name for name in names if name.startswith("kafka-")]
        if moved and any(name not in running for name in brokers):
            # Brokers address each other by port: stop the running ones, so that they restart with the new ports.
            for name in brokers:
                if name in running:
                    self._server(state, name).stop(running[name])
        self._file.save(state)

    def _external(self, state: StackState) -> dict[str, str]:
        """Return the services that the environment names, without this stack's own addresses.

        The latter are in the environment of a shell that has evaluated the output of ``up``.
        """
        own = _own_addresses(state).environment()
        return {
            variable: value for variable in own if (value := self._environ.get(variable)) and value != own[variable]
        }

    def _part_status(self, state: StackState, external: Mapping[str, str], name: str) -> PartStatus:
        if variable := _variable_of(name, external):
            return PartStatus(name, "external", variable=variable)
        if name not in state.parts:
            return PartStatus(name, "stopped")
        record = state.parts[name]
        process = self._server(state, name).find(record.process)
        if process is None:
            return PartStatus(name, "stopped", port=record.port)
        condition: Condition = "frozen" if procinfo.is_stopped(process) else "running"
        return PartStatus(name, condition, process.pid, record.port)

    def _forget_ended_users(self, state: StackState) -> None:
        state.users = [user for user in state.users if procinfo.is_alive(user)]
        if state.keep and not self._running(state):
            # The stack was up before the machine restarted, or its servers were ended by hand.
            state.keep = False

    @contextlib.contextmanager
    def _locked(self) -> Iterator[StackState]:
        with self._file.locked(lambda: self._report(f"waiting for another command on stack {self.name!r}")) as state:
            yield state


class Part:
    """One server of a stack that is up, for fault injection in tests; see ``Stack.part``."""

    def __init__(self, stack: Stack, name: str) -> None:
        """``name`` is one of the stack's parts."""
        self.name = name
        self._stack = stack

    @property
    def pid(self) -> int:
        """The running server's pid. Raises DevstackError if it is down."""
        return self._running().pid

    @property
    def port(self) -> int:
        """The loopback port that clients use."""
        return self._stack._file.load().parts[self.name].port

    def kill(self) -> None:
        """End the server and its helpers by SIGKILL and wait until they have ended."""
        self._server().kill(self._running())

    def freeze(self) -> None:
        """Freeze the server and its helpers by SIGSTOP: connections stay open and get no answer."""
        self._server().freeze(self._running())

    def thaw(self) -> None:
        """Resume the server after ``freeze``."""
        self._server().thaw(self._running())

    def stop(self) -> None:
        """Stop the server and wait until it has ended; does nothing if it is down."""
        with self._stack._locked() as state:
            server = self._stack._server(state, self.name)
            if process := server.find(state.parts[self.name].process):
                server.stop(process)

    def start(self) -> None:
        """Start the server on its previous port and wait until it answers; a broker need not know the others.

        Raises DevstackError if it does not start.
        """
        with self._stack._locked() as state:
            self._stack._start(state, self.name, threading.Event())

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of its log."""
        return last_lines(self._server().log_path, lines)

    def _server(self) -> Server:
        return self._stack._server(self._stack._file.load(), self.name)

    def _running(self) -> Identity:
        state = self._stack._file.load()
        process = self._stack._server(state, self.name).find(state.parts[self.name].process)
        if process is None:
            raise DevstackError(f"{self.name} of stack {self._stack.name!r} is down: start it first")
        return process


def _broker_names(state: StackState) -> list[str]:
    return [f"kafka-{number}" for number in range(1, state.brokers + 1)]


def _own_addresses(state: StackState) -> Addresses:
    def port(name: str) -> int:
        return state.parts.get(name, PartRecord()).port

    return Addresses(
        database_url=postgres_url(port(POSTGRES), state.password),
        redis_url=redis_url(port(REDIS)),
        kafka_bootstrap_servers=",".join(f"{LOOPBACK}:{port(name)}" for name in _broker_names(state)),
    )


def _addresses(state: StackState, external: Mapping[str, str]) -> Addresses:
    values = {**_own_addresses(state).environment(), **external}
    return Addresses(values[DATABASE_URL], values[REDIS_URL], values[KAFKA_BOOTSTRAP_SERVERS])


def _variable_of(name: str, external: Mapping[str, str]) -> str | None:
    """Return the environment variable that names this part's service, or None if the stack runs it."""
    variable = {POSTGRES: DATABASE_URL, REDIS: REDIS_URL}.get(name, KAFKA_BOOTSTRAP_SERVERS)
    return variable if variable in external else None


def _report_to_stderr(line: str) -> None:
    # In one write: parts start in threads, and the lines of two must not run into each other.
    sys.stderr.write(f"devstack: {line}\n")
    sys.stderr.flush()
