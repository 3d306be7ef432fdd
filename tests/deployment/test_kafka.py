"""The brokers of the composition are those that every test runs on."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from devstack.kafka.broker import BrokerPorts, KafkaBroker
from devstack.kafka.jars import POM
from tests.deployment.files import CLUSTER, SINGLE, compose

MODES = pytest.mark.parametrize(("variables", "brokers"), [(SINGLE, 1), (CLUSTER, 3)], ids=["single", "cluster"])

# Where brokers are and keep their data has to differ.
PLACES = {
    "listeners",
    "advertised.listeners",
    "controller.quorum.voters",
    "inter.broker.listener.name",
    "listener.security.protocol.map",
    "log.dirs",
}
# The image reads these itself.
NOT_PROPERTIES = {"KAFKA_HEAP_OPTS"}


def kafka_services(variables: dict[str, str]) -> dict[str, dict[str, Any]]:
    services = compose(variables)["services"]
    return {name: service for name, service in services.items() if name.startswith("kafka-")}


def properties(service: dict[str, Any]) -> dict[str, str]:
    """The broker's properties: its command is run up to the image's own, which makes them of the variables."""
    shell, option, script = service["command"]
    assert script.endswith("exec /etc/kafka/docker/run\n")
    environment = {name: str(value) for name, value in service["environment"].items()}
    run = subprocess.run(
        [shell, option, script.replace("/etc/kafka/docker/run", "env -0")],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    variables = dict(pair.split("=", 1) for pair in run.stdout.split("\0") if pair)
    return {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in variables.items()
        if name.startswith("KAFKA_") and name not in NOT_PROPERTIES
    }


def devstack_properties(folder: Path, number: int, brokers: int) -> dict[str, str]:
    """What ``python -m devstack up --brokers N`` writes for a broker."""
    ports = [BrokerPorts(client=20000 + n, controller=30000 + n) for n in range(brokers)]
    broker = KafkaBroker(f"kafka-{number}", folder, number, ports, "no cluster", print)
    # With a data folder there is nothing to format, which would take a Java.
    (broker.folder / "logs").mkdir(parents=True)
    broker.prepare()
    lines = (broker.folder / "server.properties").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


@MODES
def test_brokers_have_the_settings_of_those_in_the_tests(
    variables: dict[str, str], brokers: int, tmp_path: Path
) -> None:
    services = kafka_services(variables)
    assert list(services) == [f"kafka-{number}" for number in range(1, brokers + 1)]
    for number, service in enumerate(services.values(), start=1):
        ours, theirs = properties(service), devstack_properties(tmp_path / str(number), number, brokers)
        assert {name: ours[name] for name in ours.keys() - PLACES} == {
            name: theirs[name] for name in theirs.keys() - PLACES
        }


@MODES
def test_brokers_are_the_voters_and_reach_each_other(variables: dict[str, str], brokers: int) -> None:
    services = kafka_services(variables)
    voters = ",".join(f"{number}@kafka-{number}:9093" for number in range(1, brokers + 1))
    for name, service in services.items():
        settings = properties(service)
        assert settings["controller.quorum.voters"] == voters
        assert f"{settings['node.id']}@{name}:9093" in voters
        advertised = settings["advertised.listeners"].split(",")
        assert f"{settings['inter.broker.listener.name']}://{name}:9092" in advertised
    assert len({service["environment"]["CLUSTER_ID"] for service in services.values()}) == 1


def test_a_broker_that_was_not_told_of_the_cluster_is_no_voter_and_so_does_not_start() -> None:
    """``--profile cluster`` turns services on without setting the variable that the others look at."""
    told = properties(kafka_services(CLUSTER)["kafka-2"])
    not_told = properties(kafka_services(SINGLE)["kafka-1"])
    assert told["node.id"] == "2"
    assert not_told["controller.quorum.voters"] == "1@kafka-1:9093"


@pytest.mark.parametrize("name", kafka_services(CLUSTER))
def test_the_host_listener_is_published_under_the_address_it_advertises(name: str) -> None:
    service = kafka_services(CLUSTER)[name]
    settings = properties(service)
    (port,) = service["ports"]
    host, outside, inside = port.split(":")
    assert outside == inside
    assert settings["advertised.listeners"].endswith(f",HOST://{host}:{outside}")
    assert settings["listeners"].endswith(f",HOST://:{inside}")
    names = set(re.findall(r"(\w+)://", settings["listeners"]))
    assert {pair.partition(":")[0] for pair in settings["listener.security.protocol.map"].split(",")} == names


@pytest.mark.parametrize("name", kafka_services(CLUSTER))
def test_a_broker_keeps_its_data_in_a_volume_of_its_own(name: str) -> None:
    service = kafka_services(CLUSTER)[name]
    assert service["volumes"] == [f"{name}:{properties(service)['log.dirs']}"]


def test_the_heap_leaves_room_in_the_memory_limit() -> None:
    for service in kafka_services(CLUSTER).values():
        heap = re.search(r"-Xmx(\d+)m", service["environment"]["KAFKA_HEAP_OPTS"])
        assert heap is not None
        assert service["mem_limit"] == "1g"
        assert int(heap[1]) <= 768


def test_the_broker_is_of_the_version_that_the_tests_run_on() -> None:
    namespace = {"m": "http://maven.apache.org/POM/4.0.0"}
    version = ElementTree.parse(POM).findtext(
        ".//m:dependency[m:groupId='org.apache.kafka']/m:version", None, namespace
    )
    for service in kafka_services(CLUSTER).values():
        assert service["image"] == f"apache/kafka:{version}"
