"""A story of the demo on real processes: it follows its document to the last arrow, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from django.conf import settings

from demo.stories.document import read_document
from devstack import ManagedProcess
from tests.support.service import environment, run_command

pytestmark = pytest.mark.django_db(transaction=True)

_NUMBER = "004"
_SECONDS = 300.0
_PREFIX = "story-test-"


@pytest.fixture
def story(tmp_path: Path, redis_flushed: None) -> Iterator[ManagedProcess]:
    """The story of a document under its settings, on topics that it must make itself."""
    env = environment(KAFKA_TOPIC_PREFIX=_PREFIX, SEED=_NUMBER, DEMO_EXIT="1")
    script = f'set -a; . "./seeds/seed-{_NUMBER}.env"; exec "$0" manage.py demo --logs "$1"'
    argv = ["sh", "-c", script, sys.executable, str(tmp_path)]
    with ManagedProcess("story", argv, env, settings.BASE_DIR, tmp_path / "story.log") as process:
        yield process


def test_a_story_observes_every_arrow_of_its_document(story: ManagedProcess) -> None:
    code = story.wait(_SECONDS)
    said = story.log_path.read_text()
    assert code == 0, said
    document = read_document(settings.BASE_DIR / "seeds" / f"seed-{_NUMBER}.md")
    arrows = sum(len(diagram.arrows) for diagram in document.diagrams)
    assert f"{arrows} arrows of seeds/seed-{_NUMBER}.md were observed" in said
    assert said.count("verdict: everything holds") == 1
    names = AdminClient({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS}).list_topics(timeout=10).topics
    assert not [name for name in names if name.startswith(_PREFIX)]


def test_an_unknown_document_gets_one_line_that_names_the_five() -> None:
    ended: subprocess.CompletedProcess[str] = run_command("demo", env=environment(SEED="005"))
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        "CommandError: there is no document '005': set SEED to one of 000, 001, 002, 003, 004, or unset it"
    ]
