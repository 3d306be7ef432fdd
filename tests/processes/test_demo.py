"""The demo, small: its verdict, its pages, what it does about a killed process, and what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import sys
import urllib.request
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from django.conf import settings

from devstack import ManagedProcess, wait_until
from devstack.procinfo import all_stats
from tests.support.service import environment

pytestmark = pytest.mark.django_db(transaction=True)

_SIZE = ("--requests", "300", "--users", "150", "--coupons", "2", "--quantity", "50", "--issuers", "1")


@pytest.fixture
def demo(tmp_path: Path, settings: pytest.FixtureRequest) -> ManagedProcess:
    """The demo of a small sale, on topics that it must make itself."""
    env = environment(KAFKA_TOPIC_PREFIX="demo-test-", COLUMNS="100")
    argv = [sys.executable, "manage.py", "demo", *_SIZE, "--logs", str(tmp_path)]
    return ManagedProcess("demo", argv, env, None, tmp_path / "demo.log")


def when_said(demo: ManagedProcess, words: str) -> str:
    """Wait until the demo has said ``words``; returns all that it said."""

    def said() -> bool:
        assert demo.poll() is None or words in demo.log_path.read_text(), demo.log_tail()
        return words in demo.log_path.read_text()

    wait_until(said, 180.0, f"the demo did not say {words!r}")
    return demo.log_path.read_text()


def topics_left() -> set[str]:
    names = AdminClient({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS}).list_topics(timeout=10).topics
    return {name for name in names if name.startswith("demo-test-")}


def children_of(pid: int) -> dict[int, str]:
    return {
        stat.pid: Path(f"/proc/{stat.pid}/cmdline").read_text().replace("\0", " ")
        for stat in all_stats()
        if stat.parent == pid
    }


def test_the_demo_sells_out_restarts_what_dies_and_leaves_nothing_behind(demo: ManagedProcess) -> None:
    with demo:
        said = when_said(demo, "Ctrl-C ends it")
        assert "verdict: everything holds" in said
        assert "the five documents: make demo SEED=000, SEED=001, SEED=002, SEED=003 or SEED=004" in said
        address = re.search(r"shopper's page +(\S+)", said)
        assert address is not None
        with urllib.request.urlopen(address[1], timeout=10) as page:
            assert page.status == 200
        relay = next(pid for pid, command in children_of(demo.pid).items() if "relay_outbox" in command)
        os.kill(relay, signal.SIGKILL)
        when_said(demo, f"relay (pid {relay}) was ended by signal 9: starting it again")
        started = children_of(demo.pid)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 0
        assert not [stat.pid for stat in all_stats() if stat.pid in started and "manage.py" in started[stat.pid]]
    assert topics_left() == set()
