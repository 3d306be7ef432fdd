"""The real servers: they answer, they keep their data through kills, and nothing of them stays."""

import importlib
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from devstack import Addresses, DevstackError, Stack, wait_until
from devstack.ports import LOOPBACK, free_port
from devstack.procinfo import find_command, identify, running_in
from devstack.stack import POSTGRES, REDIS

psycopg2: Any = importlib.import_module("psycopg2")
KAFKA = "kafka-1"
PARTS = [POSTGRES, REDIS, KAFKA]


@contextmanager
def database(addresses: Addresses) -> Iterator[Any]:
    with closing(psycopg2.connect(addresses.database_url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            yield cursor


def topics(addresses: Addresses) -> set[str]:
    client = AdminClient({"bootstrap.servers": addresses.kafka_bootstrap_servers})
    return set(client.list_topics(timeout=10).topics)


def test_all_three_answer(addresses: Addresses) -> None:
    with database(addresses) as cursor:
        cursor.execute("SELECT current_database(), current_setting('server_encoding'), version()")
        name, encoding, version = cursor.fetchone()
    assert (name, encoding) == ("coupons", "UTF8")
    assert version.startswith("PostgreSQL 18")
    with redis.Redis.from_url(addresses.redis_url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert isinstance(topics(addresses), set)


def test_up_again_changes_nothing(stack: Stack, addresses: Addresses) -> None:
    before = stack.status()
    assert [(part.name, part.condition) for part in before] == [(name, "running") for name in PARTS]
    assert stack.up() == addresses
    assert stack.status() == before


def test_data_outlives_a_kill_of_every_part(stack: Stack, addresses: Addresses) -> None:
    with database(addresses) as cursor:
        cursor.execute("CREATE TABLE kept (word text)")
        cursor.execute("INSERT INTO kept VALUES ('still here')")
    client = AdminClient({"bootstrap.servers": addresses.kafka_bootstrap_servers})
    client.create_topics([NewTopic("kept", 1)])["kept"].result(10)

    for name in PARTS:
        stack.part(name).kill()
    assert {part.condition for part in stack.status()} == {"stopped"}

    assert stack.up() == addresses
    with database(addresses) as cursor:
        cursor.execute("SELECT word FROM kept")
        assert cursor.fetchall() == [("still here",)]
    assert "kept" in topics(addresses)


def test_a_part_starts_again_alone(stack: Stack, addresses: Addresses) -> None:
    part = stack.part(REDIS)
    first = part.pid
    part.stop()
    with pytest.raises(DevstackError, match="down"):
        part.kill()
    part.start()
    assert part.pid != first
    with redis.Redis.from_url(addresses.redis_url) as client:
        assert client.ping()


def test_a_frozen_database_gives_no_answer_until_it_is_thawed(stack: Stack, addresses: Addresses) -> None:
    part = stack.part(POSTGRES)
    with database(addresses) as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (backend,) = cursor.fetchone()
        part.freeze()
        try:
            assert stack.status()[0].condition == "frozen"
            stat = Path(f"/proc/{backend}/stat")
            wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", 5, "the backend goes on")
        finally:
            part.thaw()
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


def test_a_server_that_nobody_recorded_is_found_again(stack: Stack, addresses: Addresses) -> None:
    before = stack.status()
    # As after a starter that was killed between starting the servers and saving their pids.
    with stack._locked() as state:
        for record in state.parts.values():
            record.process = None
    assert stack.up() == addresses
    assert stack.status() == before


def test_another_broker_count_is_refused(stack: Stack, addresses: Addresses) -> None:
    three = Stack("tests", 3, root=stack.folder.parents[1], environ={})
    with pytest.raises(DevstackError, match="down --wipe"):
        three.up()


def test_own_addresses_in_the_environment_are_no_foreign_ones(stack: Stack, addresses: Addresses) -> None:
    same = Stack("tests", root=stack.folder.parents[1], environ=addresses.environment())
    assert {part.condition for part in same.status()} == {"running"}


def test_down_leaves_nothing_and_wipe_forgets(stack: Stack, addresses: Addresses) -> None:
    pids = {part.name: part.pid for part in stack.status()}
    stack.down()
    for pid in pids.values():
        assert pid is not None
        assert identify(pid) is None
    assert running_in(stack.folder / "data" / POSTGRES, "postgres") == []
    assert (stack.folder / "data" / POSTGRES / "PG_VERSION").exists()
    stack.down(wipe=True)
    assert not (stack.folder / "data").exists()


def test_named_services_are_not_started(tmp_path: Path) -> None:
    given = Addresses("postgres://elsewhere/x", "redis://elsewhere/1", "elsewhere:9092")
    stack = Stack("named", root=tmp_path, environ=given.environment())
    assert stack.up() == given
    assert {part.condition for part in stack.status()} == {"external"}
    stack.down(wipe=True)
    assert not (tmp_path / ".devstack" / "named" / "data").exists()


def test_stacks_stand_side_by_side_and_use_ends_what_it_started(tmp_path: Path) -> None:
    # Redis alone, which starts in no time; the others are given.
    environ = {"DATABASE_URL": "postgres://elsewhere/x", "KAFKA_BOOTSTRAP_SERVERS": "elsewhere:9092"}
    one, two = (Stack(name, root=tmp_path, environ=environ) for name in ("one", "two"))
    with one.used() as first, two.used(fresh=True) as second:
        assert first.redis_url != second.redis_url
        redis_pid = one.part(REDIS).pid
        with one.used():
            pass
        assert one.part(REDIS).pid == redis_pid
        with pytest.raises(DevstackError, match="is up"), one.used(fresh=True):
            pass
    assert identify(redis_pid) is None
    assert [part.condition for part in two.status()] == ["external", "stopped", "external"]


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    environ = {"REDIS_URL": "redis://elsewhere/1", "KAFKA_BOOTSTRAP_SERVERS": "elsewhere:9092"}
    stack = Stack("broken", root=tmp_path, environ=environ)
    data = tmp_path / ".devstack" / "broken" / "data" / POSTGRES
    data.mkdir(parents=True)
    with pytest.raises(DevstackError, match=r"postgres ended while starting; .*postgres\.log ends with: "):
        stack.up()
    assert find_command(["-D", str(data)]) is None


@pytest.mark.parametrize("name", ["", "cache", "../x", "A"])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DevstackError, match="cannot name a stack"):
        Stack(name, root=tmp_path)


def test_a_reused_pid_is_never_killed(tmp_path: Path) -> None:
    environ = {"DATABASE_URL": "postgres://elsewhere/x", "KAFKA_BOOTSTRAP_SERVERS": "elsewhere:9092"}
    stack = Stack("reused", root=tmp_path, environ=environ)
    stack.up()
    part = stack.part(REDIS)
    innocent = part.pid
    with stack._locked() as state:
        recorded = state.parts[REDIS].process
        assert recorded is not None
        # The pid is alive, but the process that was recorded under it started earlier.
        state.parts[REDIS].process = type(recorded)(innocent, recorded.start_time - 1)
        state.parts[REDIS].port += 1
    stack.down()
    assert identify(innocent) is not None
    with stack._locked() as state:
        state.parts[REDIS].process = identify(innocent)
    part.stop()
    assert identify(innocent) is None


def test_new_brokers_get_the_ports_that_the_environment_names_if_they_are_free(tmp_path: Path) -> None:
    given = {"DATABASE_URL": "postgres://elsewhere/x", "REDIS_URL": "redis://elsewhere/0"}
    free = free_port()
    said: list[str] = []
    with socket.create_server((LOOPBACK, 0)) as other:
        taken = other.getsockname()[1]
        wishes = {**given, "DEVSTACK_BROKERS": "2", "DEVSTACK_KAFKA_PORTS": f"{taken},{free}"}
        stack = Stack("tests", root=tmp_path, environ=wishes, report=said.append)
        try:
            addresses = stack.up().kafka_bootstrap_servers.split(",")
            # Brokers that exist keep their number and ports, whatever the environment says by now.
            later = Stack("tests", root=tmp_path, environ={**given, "DEVSTACK_BROKERS": "1"}, report=said.append)
            assert later.up().kafka_bootstrap_servers.split(",") == addresses
        finally:
            stack.down(wipe=True)
    assert f"kafka-1: port {taken} is taken, a free one is used instead" in said
    assert any(line.startswith("stack 'tests' keeps its 2 broker(s), not the 1 of DEVSTACK_BROKERS") for line in said)
    assert addresses[1] == f"{LOOPBACK}:{free}"
    assert addresses[0] not in {f"{LOOPBACK}:{port}" for port in (taken, free)}
