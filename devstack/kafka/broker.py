"""A Kafka broker that is also a controller of its cluster."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from devstack.atomic_folder import atomic_folder
from devstack.errors import DevstackError
from devstack.kafka.jars import fetched_jars
from devstack.kafka.java import find_java
from devstack.ports import LOOPBACK
from devstack.processes import wait_until
from devstack.server import START_SECONDS, Server, run_tool

_LOG_CONFIGURATION = Path(__file__).with_name("log4j2.properties")
# A small heap and a fast start without JIT optimisation: brokers here run for minutes.
_JAVA_OPTIONS = ("-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
_METADATA_SECONDS = 1.0
_MAX_REPLICAS = 3
_NO_LOG = logging.getLogger("devstack.kafka")
_NO_LOG.addHandler(logging.NullHandler())
_NO_LOG.propagate = False


@dataclass(frozen=True)
class BrokerPorts:
    """The ports on which a broker listens to clients and to the other controllers."""

    client: int
    controller: int


class KafkaBroker(Server):
    """Broker ``number`` (from 1) of a cluster; ``ports`` holds those of all brokers, in order."""

    # Then SIGKILL: without a quorum of controllers the last brokers of a cluster wait for one instead of ending.
    # SIGKILL loses nothing that is acknowledged: it is in the page cache.
    stop_seconds = 8.0

    def __init__(
        self,
        name: str,
        stack_folder: Path,
        number: int,
        ports: Sequence[BrokerPorts],
        cluster_id: str,
        report: Callable[[str], None],
    ) -> None:
        """``report`` gets lines of progress when the jars must be fetched."""
        super().__init__(name, stack_folder, ports[number - 1].client)
        self.number = number
        self.ports = list(ports)
        self.cluster_id = cluster_id
        self._report = report
        self._log_folder = self.folder / "logs"
        self._configuration = self.folder / "server.properties"

    def prepare(self) -> None:
        """Write the configuration; format the data folder if there is none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_configuration(self._configuration, self._log_folder)
        if not self._log_folder.exists():
            self._format()

    def command(self) -> list[str]:
        """Return the broker's command line. Raises DevstackError when Java or Maven is missing."""
        return [*self._java(), *self.signature()]

    def signature(self) -> list[str]:
        """Return the arguments that only this broker has, without the jars: finding a broker must not fetch them."""
        return ["kafka.Kafka", str(self._configuration)]

    def answers(self) -> bool:
        """Return whether this broker answers a metadata request and lists itself."""
        return self.number in self.known_brokers()

    def known_brokers(self) -> set[int]:
        """Return the numbers of the live brokers that this broker knows; empty if it does not answer."""
        try:
            client = AdminClient(
                {
                    "bootstrap.servers": f"{LOOPBACK}:{self.port}",
                    "broker.address.family": "v4",
                    "reconnect.backoff.max.ms": 100,
                },
                logger=_NO_LOG,
            )
            return set(client.list_topics(timeout=_METADATA_SECONDS).brokers)
        except KafkaException:
            return set()

    def _java(self) -> list[str]:
        java = find_java()
        jars = fetched_jars(java, self._report)
        logging_option = f"-Dlog4j2.configurationFile={_LOG_CONFIGURATION}"
        return [str(java), *_JAVA_OPTIONS, logging_option, "-cp", f"{jars}/*"]

    def _format(self) -> None:
        with atomic_folder(self._log_folder) as unfinished:
            configuration = unfinished.with_name("format.properties")
            self._write_configuration(configuration, unfinished)
            arguments = ["kafka.tools.StorageTool", "format", "--config", str(configuration)]
            arguments += ["--cluster-id", self.cluster_id]
            run_tool([*self._java(), *arguments], f"Kafka could not format {self._log_folder}")

    def _write_configuration(self, path: Path, log_folder: Path) -> None:
        replicas = min(len(self.ports), _MAX_REPLICAS)
        in_sync = max(1, replicas - 1)
        own = self.ports[self.number - 1]
        voters = [f"{n}@{LOOPBACK}:{ports.controller}" for n, ports in enumerate(self.ports, start=1)]
        settings = {
            "process.roles": "broker,controller",
            "node.id": self.number,
            "controller.quorum.voters": ",".join(voters),
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{LOOPBACK}:{own.client},CONTROLLER://{LOOPBACK}:{own.controller}",
            "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{own.client}",
            "log.dirs": log_folder,
            "auto.create.topics.enable": "false",
            "default.replication.factor": replicas,
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": replicas,
            "offsets.topic.num.partitions": 5,
            # Small segments are compacted early, so that a restarted broker loads its groups in a moment. A broker that
            # is fenced and elected again while still loading may never again check for members that are gone. Not
            # smaller than the largest message.
            "offsets.topic.segment.bytes": 2_097_152,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": in_sync,
            "transaction.state.log.num.partitions": 5,
            "share.coordinator.state.topic.replication.factor": replicas,
            "share.coordinator.state.topic.min.isr": in_sync,
            "message.max.bytes": 2_097_152,
            # A dead broker is detected, and its restart accepted, within seconds.
            "broker.session.timeout.ms": 3_000,
            "broker.heartbeat.interval.ms": 500,
            "group.initial.rebalance.delay.ms": 0,
        }
        path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))


def wait_for_cluster(brokers: Sequence[KafkaBroker]) -> None:
    """Wait until each broker answers that it knows all of them. Raises DevstackError if they do not find each other."""
    numbers = {broker.number for broker in brokers}
    try:
        wait_until(
            lambda: all(broker.known_brokers() == numbers for broker in brokers),
            START_SECONDS,
            f"the {len(brokers)} Kafka brokers do not find each other: see `logs`, or start over with `down`",
        )
    except TimeoutError as error:
        raise DevstackError(str(error)) from None
