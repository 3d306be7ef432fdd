"""A story of the demo on real processes: it observes every arrow of its document or fails; it leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from django.conf import settings

from demo.stories.document import read_document
from devstack import ManagedProcess
from devstack.ports import free_port
from tests.support.factories import CouponFactory
from tests.support.service import environment, run_command

pytestmark = pytest.mark.django_db(transaction=True)

_SECONDS = 300.0
_PREFIX = "story-test-"


@pytest.fixture
def story(tmp_path: Path, redis_flushed: None) -> Iterator[Callable[..., ManagedProcess]]:
    """Starts the story of a document, on topics that it must make itself."""
    with ExitStack() as running:

        def start(number: str, *, under_its_settings: bool, **settings_of_test: str) -> ManagedProcess:
            # A port of its own: the usual one may be chosen by another lane's demo at the same moment.
            own = {"KAFKA_TOPIC_PREFIX": _PREFIX, "PORT": str(free_port())}
            env = environment(SEED=number, DEMO_EXIT="1", **own, **settings_of_test)
            profile = f'set -a; . "./seeds/seed-{number}.env"; ' if under_its_settings else ""
            argv = ["sh", "-c", f'{profile}exec "$0" manage.py demo --logs "$1"', sys.executable, str(tmp_path)]
            log = tmp_path / "story.log"
            return running.enter_context(ManagedProcess("story", argv, env, settings.BASE_DIR, log))

        yield start


def test_a_story_observes_every_arrow_of_its_document(story: Callable[..., ManagedProcess]) -> None:
    process = story("004", under_its_settings=True)
    code = process.wait(_SECONDS)
    said = process.log_path.read_text()
    assert code == 0, said
    document = read_document(settings.BASE_DIR / "seeds" / "seed-004.md")
    arrows = sum(len(diagram.arrows) for diagram in document.diagrams)
    assert f"{arrows} arrows of seeds/seed-004.md were observed" in said
    assert said.count("verdict: everything holds") == 1
    assert not _topics_left()


def test_a_story_that_goes_otherwise_names_the_arrows_that_were_not_observed(
    story: Callable[..., ManagedProcess],
) -> None:
    # With the default's three partitions, two of the document's coupon types are on one.
    process = story("000", under_its_settings=False, CONSUMER_CONCURRENCY='{"issue": 2}')
    code = process.wait(_SECONDS)
    said = process.log_path.read_text()
    assert code == 1, said
    failed = [line for line in said.splitlines() if line.startswith("FAIL ")]
    assert failed[0].startswith("FAIL three coupon types are on the partitions")
    assert "FAIL diagram 3, arrow 4: Producer->>Topic: 메시지 전송 was not observed" in failed
    assert "verdict: something does not hold" in said
    assert not _topics_left()


def test_a_story_that_was_told_before_says_only_that_it_needs_an_empty_database(
    story: Callable[..., ManagedProcess],
) -> None:
    CouponFactory.create(coupon_type="FLASH_SALE")
    process = story("004", under_its_settings=True)
    code = process.wait(_SECONDS)
    said = process.log_path.read_text()
    assert code == 1, said
    assert [line for line in said.splitlines() if line.startswith("FAIL ")] == [
        "FAIL the database has the coupon FLASH_SALE of an earlier run: the story needs an empty database and Redis"
    ]
    assert "observed" not in said.replace("observed:", "")
    assert "verdict" not in said
    assert not _topics_left()


def _topics_left() -> list[str]:
    names = AdminClient({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS}).list_topics(timeout=10).topics
    return [name for name in names if name.startswith(_PREFIX)]


def test_an_unknown_document_gets_one_line_that_names_the_five() -> None:
    ended: subprocess.CompletedProcess[str] = run_command("demo", env=environment(SEED="005"))
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        "CommandError: there is no document '005': set SEED to one of 000, 001, 002, 003, 004, or unset it"
    ]
