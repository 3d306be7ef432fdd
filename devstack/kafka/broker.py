"""One Kafka broker, which is a controller of its cluster too."""

import logging
import subprocess
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
from devstack.server import Server

_LOG_CONFIGURATION = Path(__file__).with_name("log4j2.properties")
# A small heap, and a start that spends no time on optimising: brokers here live for minutes.
_JAVA_OPTIONS = ("-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
_METADATA_SECONDS = 1.0
_MOST_REPLICAS = 3
_SILENT = logging.getLogger("devstack.kafka")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False


@dataclass(frozen=True)
class BrokerPorts:
    """Where a broker listens to clients and to the other controllers."""

    client: int
    controller: int


class KafkaBroker(Server):
    """Broker ``number`` (from 1) of a cluster; ``ports`` holds those of all brokers, in order."""

    # Without a quorum of controllers the last brokers of a cluster wait for one instead of ending. Nothing
    # acknowledged is lost by SIGKILL: it is in the page cache.
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
        """Write the configuration; format the data folder when that was not done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_configuration(self._configuration, self._log_folder)
        if not self._log_folder.exists():
            self._format()

    def command(self) -> list[str]:
        """Return the broker's command line. Raises DevstackError when Java or Maven is missing."""
        return [*self._java(), *self.signature()]

    def signature(self) -> list[str]:
        """Return what only this broker has; to look for it must not fetch jars."""
        return ["kafka.Kafka", str(self._configuration)]

    def answers(self) -> bool:
        """Say whether this broker, asked by itself, answers with metadata that lists itself."""
        return self.number in self.known_brokers()

    def known_brokers(self) -> set[int]:
        """Return the numbers of the live brokers as this broker knows them; empty when it is silent."""
        try:
            client = AdminClient(
                {
                    "bootstrap.servers": f"{LOOPBACK}:{self.port}",
                    "broker.address.family": "v4",
                    "reconnect.backoff.max.ms": 100,
                },
                logger=_SILENT,
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
            arguments = ["format", "--config", str(configuration), "--cluster-id", self.cluster_id]
            result = subprocess.run(
                [*self._java(), "kafka.tools.StorageTool", *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if result.returncode != 0:
                reason = (result.stderr.strip() or result.stdout.strip() or "no word").splitlines()[-1]
                raise DevstackError(f"Kafka could not format {self._log_folder}: {reason}")

    def _write_configuration(self, path: Path, log_folder: Path) -> None:
        replicas = min(len(self.ports), _MOST_REPLICAS)
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
            # Compacted early, as no more than this is ever kept as it was written: a broker that comes back reads its
            # groups in a moment, and one that is fenced and elected anew while it still reads them may never again look
            # for members that are gone. No smaller than the largest message.
            "offsets.topic.segment.bytes": 2_097_152,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": in_sync,
            "transaction.state.log.num.partitions": 5,
            "share.coordinator.state.topic.replication.factor": replicas,
            "share.coordinator.state.topic.min.isr": in_sync,
            "message.max.bytes": 2_097_152,
            # A dead broker is noticed, and its restart accepted, within seconds.
            "broker.session.timeout.ms": 3_000,
            "broker.heartbeat.interval.ms": 500,
            "group.initial.rebalance.delay.ms": 0,
        }
        path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
