"""The composition names the processes of the Procfile and the variables of the settings, and keeps to good manners."""

from __future__ import annotations

import re
import shlex
import subprocess
from typing import Any

import pytest

from couponsite.environment.reader import Environment
from devstack.redis import valkey_server
from tests.deployment.files import (
    CLUSTER,
    REQUIRED,
    ROOT,
    SINGLE,
    compose,
    compose_text,
    compose_variables,
    example_settings,
    procfile,
)

SERVICES: dict[str, dict[str, Any]] = compose(CLUSTER)["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
ONE_SHOT = {"migrate", "topics"}
LONG_RUNNING = SERVICES.keys() - ONE_SHOT

# These only Compose reads; its header tells what they are.
COMPOSE_ONLY = {"POSTGRES_PASSWORD", "COMPOSE_PROFILES"}
# These the service does not read itself: libpq takes the password from there.
LIBPQ = {"PGPASSWORD"}
# In a container the web server listens where the image says.
FIXED_BY_THE_IMAGE = {"PORT", "HOST"}
SECRETS = {"SECRET_KEY", "POSTGRES_PASSWORD"}


def seconds(duration: str) -> int:
    """Of a duration as Compose writes it: ``90s``, ``1m``."""
    return int(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]


def megabytes(size: str) -> int:
    return int(size[:-1]) * {"m": 1, "g": 1024}[size[-1]]


def command_line(service: dict[str, Any]) -> list[str]:
    command: list[str] = service.get("command", [])
    return command


# Processes


def test_every_process_of_the_procfile_is_a_service_and_the_other_way_round() -> None:
    assert OURS.keys() - ONE_SHOT == procfile().keys()


@pytest.mark.parametrize("process", sorted(procfile().keys() - {"web"}))
def test_a_service_runs_the_command_line_of_the_procfile(process: str) -> None:
    line = procfile()[process]
    needs_a_shell = re.search(r"[$&|;<>]", line)
    assert command_line(OURS[process]) == (["sh", "-c", line] if needs_a_shell else shlex.split(line))


def test_the_web_service_runs_the_command_of_the_image() -> None:
    assert "command" not in OURS["web"]


def test_the_database_is_migrated_and_topics_are_made_by_services_that_end() -> None:
    assert command_line(OURS["migrate"])[:3] == ["python", "manage.py", "migrate"]
    assert command_line(OURS["topics"]) == ["python", "manage.py", "create_topics"]
    assert OURS["migrate"]["restart"] == "no"
    assert OURS["topics"]["restart"].startswith("on-failure:")


@pytest.mark.parametrize("process", procfile())
def test_a_process_starts_once_the_database_is_migrated(process: str) -> None:
    assert OURS[process]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


def test_the_web_server_does_not_wait_for_kafka() -> None:
    waits_for = set(OURS["web"]["depends_on"])
    assert waits_for == {"migrate", "redis"}
    assert set(OURS["migrate"]["depends_on"]) == {"postgres"}


def test_topics_wait_for_every_broker_there_is() -> None:
    brokers = {name for name in SERVICES if name.startswith("kafka-")}
    waits_for = dict(OURS["topics"]["depends_on"])
    # The command looks for what a change of routes left in the outbox.
    assert waits_for.pop("migrate") == {"condition": "service_completed_successfully"}
    assert waits_for.keys() == brokers
    # Those of the profile are no condition while it is off.
    optional = {name for name, condition in waits_for.items() if condition.get("required") is False}
    assert optional == {name for name in brokers if SERVICES[name].get("profiles")}


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_waited_for_can_come_about(name: str) -> None:
    for other, condition in SERVICES[name].get("depends_on", {}).items():
        if condition["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other]
        else:
            assert condition["condition"] == "service_completed_successfully"
            assert other in ONE_SHOT


# Variables


def test_the_service_gets_every_setting() -> None:
    for service in OURS.values():
        assert service["environment"].keys() == (example_settings() - FIXED_BY_THE_IMAGE) | LIBPQ


def test_every_variable_is_a_setting_or_one_of_compose() -> None:
    assert {variable.name for variable in compose_variables()} <= example_settings() | COMPOSE_ONLY


def test_the_header_tells_of_every_variable_of_compose() -> None:
    header = compose_text().partition("\nname:")[0]
    assert all(line.startswith("#") for line in header.splitlines() if line)
    for name in COMPOSE_ONLY | SECRETS:
        assert f"#   {name} " in header


def test_the_header_tells_both_commands() -> None:
    assert "#   docker compose up --build --detach " in compose_text()
    assert "#   COMPOSE_PROFILES=cluster docker compose up --build --detach " in compose_text()


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_secret_must_be_set_and_its_refusal_says_how(name: str) -> None:
    uses = [variable for variable in compose_variables() if variable.name == name]
    assert uses
    for use in uses:
        assert use.operator == "?"
        assert "openssl rand" in use.operand
    assert REQUIRED.keys() == SECRETS


def test_a_value_of_the_shell_cannot_lead_the_service_elsewhere() -> None:
    """A `.env` made from `.env.example` for a shell names addresses that mean nothing in a container."""
    for service in OURS.values():
        for name in ("DATABASE_URL", "REDIS_URL", "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_REPLICATION_FACTOR", "DEBUG"):
            assert service["environment"][name] is not None
    used = {variable.name for variable in compose_variables()}
    assert not used & {"DATABASE_URL", "REDIS_URL", "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_REPLICATION_FACTOR", "DEBUG"}


@pytest.mark.parametrize("variables", [SINGLE, CLUSTER], ids=["single", "cluster"])
def test_the_settings_accept_what_is_set(variables: dict[str, str]) -> None:
    model = compose(variables)
    given = {name: value for name, value in model["services"]["web"]["environment"].items() if value is not None}
    env = Environment(given)
    services = model["services"].keys()
    database = env.database("DATABASE_URL", None)
    owner = model["services"]["postgres"]["environment"]
    assert (database["HOST"], database["NAME"], database["USER"]) == (
        "postgres",
        owner["POSTGRES_DB"],
        owner["POSTGRES_USER"],
    )
    assert given["PGPASSWORD"] == owner["POSTGRES_PASSWORD"] == REQUIRED["POSTGRES_PASSWORD"]
    assert env.secret("SECRET_KEY", at_least=32) == REQUIRED["SECRET_KEY"]
    assert env.flag("DEBUG", True) is False
    brokers = [server.partition(":")[0] for server in env.servers("KAFKA_BOOTSTRAP_SERVERS", None).split(",")]
    assert brokers == sorted(name for name in services if name.startswith("kafka-"))
    assert env.integer("KAFKA_REPLICATION_FACTOR", 1, minimum=1, maximum=9) == len(brokers)


def test_the_two_modes_share_no_data() -> None:
    assert compose(SINGLE)["name"] != compose(CLUSTER)["name"]
    assert not re.search(r"external:|container_name:", compose_text())


# Manners


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    _, _, tag = SERVICES[name]["image"].partition(":")
    if name in OURS:
        assert SERVICES[name]["image"] == OURS["web"]["image"]
        assert tag not in ("", "latest")
    else:
        assert re.match(r"\d+\.\d+", tag)


def test_only_the_web_server_is_published_and_kafka_to_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.pop("web") == ["8000:8000"]
    assert published.keys() == {"kafka-1", "kafka-2", "kafka-3"}
    for ports in published.values():
        assert all(port.startswith("127.0.0.1:") for port in ports)
    assert "network_mode" not in compose_text()


@pytest.mark.parametrize("name", sorted(LONG_RUNNING))
def test_a_service_has_a_health_check_that_is_given_up_in_time(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert seconds(check["timeout"]) < seconds(check["interval"])
    assert check["retries"] >= 3
    assert seconds(check["start_period"]) >= 10


def test_the_web_server_is_healthy_when_it_is_ready() -> None:
    assert "http://127.0.0.1:8000/readyz" in OURS["web"]["healthcheck"]["test"][-1]


@pytest.mark.parametrize(("name", "port"), [("relay", 5432), ("worker", 5432), ("issuer", 9092)])
def test_a_worker_is_healthy_while_it_is_connected(name: str, port: int) -> None:
    """Lines as in /proc/net/tcp: addresses as hexadecimal, local and remote, then the state (01 is established)."""
    _, grep, _, pattern, *files = OURS[name]["healthcheck"]["test"]
    assert (grep, files) == ("grep", ["/proc/net/tcp", "/proc/net/tcp6"])
    line = "   1: 0500A8C0:A1B2 0200A8C0:{port:04X} {state} 00000000:00000000 02:000001B2 00000000 10001"
    assert re.search(pattern, line.format(port=port, state="01"))
    assert not re.search(pattern, line.format(port=port, state="02"))
    assert not re.search(pattern, line.format(port=port + 1, state="01"))
    # A process that listens on the port, or is connected from it, is no client of it.
    assert not re.search(pattern, f"   1: 0500A8C0:{port:04X} 0200A8C0:A1B2 01 00000000:00000000")


@pytest.mark.parametrize("name", sorted(LONG_RUNNING))
def test_a_service_comes_back(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_memory_and_logs_are_limited(name: str) -> None:
    service = SERVICES[name]
    assert megabytes(service["mem_limit"]) >= 128
    assert service["logging"]["driver"] == "json-file"
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("name", OURS)
def test_a_process_has_time_to_drain(name: str) -> None:
    given_up_after = re.search(r"--workers-kill-timeout (\d+)", procfile()["web"])
    assert given_up_after is not None
    assert seconds(OURS[name]["stop_grace_period"]) > int(given_up_after[1])


@pytest.mark.parametrize("name", OURS)
def test_a_process_can_do_no_more_than_it_must(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] is True
    assert service["tmpfs"] == "/tmp"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "user" not in service
    assert not re.search(r"privileged: true|docker\.sock", compose_text())


def test_redis_keeps_nothing_and_evicts_nothing() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert (options["--save"], options["--appendonly"], options["--maxmemory-policy"]) == ("", "no", "noeviction")
    # Refusing a write is survived, being killed for memory fails every request.
    assert megabytes(options["--maxmemory"].removesuffix("b")) < megabytes(SERVICES["redis"]["mem_limit"])
    assert "volumes" not in SERVICES["redis"]


def test_redis_is_the_server_of_the_tests() -> None:
    image, _, tag = SERVICES["redis"]["image"].partition(":")
    printed = subprocess.run([valkey_server(), "--version"], capture_output=True, text=True, check=True).stdout
    (tested,) = re.findall(r"\bv=([\d.]+)", printed)
    assert (image, tag.partition("-")[0]) == ("valkey/valkey", tested)


def test_postgresql_keeps_its_data_where_the_image_has_it() -> None:
    service = SERVICES["postgres"]
    major = int(service["image"].partition(":")[2].partition(".")[0])
    assert major >= 18
    assert service["volumes"] == ["postgres:/var/lib/postgresql"]
    assert "postgres" in compose(SINGLE)["volumes"]


def test_no_file_of_the_host_is_mounted() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", ())]
    assert {mount.partition(":")[0] for mount in mounts} == compose(CLUSTER)["volumes"].keys()


def test_the_build_needs_nothing_but_the_checkout() -> None:
    assert {service["build"] for service in OURS.values()} == {"."}
    assert (ROOT / "Dockerfile").is_file()
