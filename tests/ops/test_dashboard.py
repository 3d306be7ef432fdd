"""The dashboard shows what is wrong, what waits and what is left."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core.cache import caches
from django.db.models.functions import Now
from django.test import Client
from pytest_django import Settings
from uuid_utils.compat import uuid7

from coupons.models import Coupon
from kafka_bridge.models import (
    Alert,
    DeadLetter,
    HeldMessage,
    OutboxHold,
    OutboxMessage,
    ProcessHeartbeat,
    RelayLease,
    Sample,
    SweptPartition,
)
from kafka_bridge.operating.dead_letter_counts import open_dead_letters
from kafka_bridge.outbox import state
from kafka_bridge.outbox.state import outbox_state
from tests.admin.pages import html_of
from tests.support.outbox import TOPIC, publish_orders
from tests.support.ranking import redis_away

PATHS = ["/ops/", "/ops/panels"]


def make_dead_letter(offset: int, *, group: str = "issue", error: str = "PoisonMessage", **fields: Any) -> DeadLetter:
    return DeadLetter.objects.create(
        consumer_group=group, topic="t", partition=0, offset=offset, message_timestamp=0, headers=b"[]",
        error_class=error, **fields,
    )  # fmt: skip


def make_heartbeat(role: str = "issuer", *, seen: float = 0, turned: float = 0, **fields: Any) -> ProcessHeartbeat:
    """A process that was last seen, and whose loop last made a pass, so many seconds ago."""
    times = {"seen_at": Now() - timedelta(seconds=seen), "turned_at": Now() - timedelta(seconds=turned)}
    return ProcessHeartbeat.objects.create(
        id=uuid7(), **{"role": role, "host": "box", "pid": 4711, "started_at": Now(), **times, **fields}
    )


@pytest.mark.parametrize("path", PATHS)
def test_a_service_at_rest_is_calm(viewer: Client, path: str) -> None:
    page = html_of(viewer.get(path))
    for words in (
        "no data",
        "No alert is open.",
        "There is no coupon.",
        "No process has reported.",
        "Open dead letters",
    ):
        assert words in page


def test_the_panels_come_without_the_page_around_them(viewer: Client) -> None:
    panels = html_of(viewer.get("/ops/panels"))
    assert "<html" not in panels
    assert "<nav" not in panels
    page = html_of(viewer.get("/ops/"))
    assert page.count("<section") == panels.count("<section") == 7


@pytest.mark.parametrize("path", PATHS)
def test_it_shows_alerts_coupons_processes_and_dead_letters(
    viewer: Client, alert: Alert, make_coupon: Callable[..., Coupon], path: str
) -> None:
    make_coupon(coupon_type="SUMMER", total_quantity=1_234_567, issued=1_000_000, reserved=34_567)
    make_heartbeat(
        partitions=[{"group": "issue", "topic": "t", "partition": 3, "lag": 12, "lagMs": 350, "state": "ok"}]
    )
    make_dead_letter(1, group="ranking", error="<b>")
    page = html_of(viewer.get(path))
    for words in (alert.rule, "SUMMER", "1,000,000", "34,567", "200,000", "1,234,567", "issuer", "350 ms", "&lt;b&gt;"):
        assert words in page, words
    assert "?group=ranking" in page


@pytest.mark.django_db(transaction=True)
def test_the_outbox_counts_what_waits_and_what_is_held() -> None:
    publish_orders([1, 2, 3])
    first, second, third = OutboxMessage.objects.order_by("id")
    OutboxMessage.objects.filter(id=first.id).update(created_at=Now() - timedelta(minutes=3))
    waiting = outbox_state()
    assert (waiting.waiting, waiting.held, waiting.is_more) == (3, [], False)
    assert 180 <= (waiting.oldest_seconds or 0) < 240
    for row in (first, second, third):
        RelayLease.objects.update_or_create(shard=row.shard, defaults={"sent_through": third.id})
    HeldMessage.objects.create(message_id=second.id, shard=second.shard, topic=TOPIC, reason="topic", last_error="gone")
    held = outbox_state()
    assert not held.held_is_more
    assert (held.waiting, held.oldest_seconds) == (0, None)
    assert [(rows.topic, rows.reason, rows.number, rows.last_error) for rows in held.held] == [
        (TOPIC, "topic", 1, "gone")
    ]
    assert held.held_count == 1


@pytest.mark.django_db(transaction=True)
def test_a_long_backlog_is_counted_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    publish_orders(list(range(state.MOST_COUNTED + 5)))
    found = outbox_state()
    assert (found.waiting, found.is_more) == (state.MOST_COUNTED, True)
    assert found.oldest_seconds is not None


@pytest.mark.parametrize(("key", "shown"), [(None, "the topic"), (b"7", "key 7"), (b"\xff", "key hex ff")])
def test_what_an_operator_holds_is_shown(viewer: Client, key: bytes | None, shown: str) -> None:
    OutboxHold.objects.create(topic=TOPIC, key=key, reason="a broken consumer")
    page = html_of(viewer.get("/ops/"))
    assert f"an operator holds {shown}" in page
    assert "a broken consumer" in page


def test_open_dead_letters_are_counted_by_group_and_error(db: None) -> None:
    for offset in range(3):
        make_dead_letter(offset)
    make_dead_letter(3, error="DataError")
    make_dead_letter(4, group="ranking")
    make_dead_letter(5, closed_at=Now())
    found = open_dead_letters()
    assert (found.total, found.is_more) == (5, False)
    assert [(row.consumer_group, row.error_class, row.number) for row in found.counts] == [
        ("issue", "PoisonMessage", 3), ("issue", "DataError", 1), ("ranking", "PoisonMessage", 1),
    ]  # fmt: skip
    assert found.counts[0].oldest_at <= found.counts[0].newest_at


def test_without_an_open_dead_letter_nothing_is_counted(db: None) -> None:
    make_dead_letter(5, closed_at=Now())
    assert open_dead_letters() == ([], 0, False)


def test_a_process_that_is_silent_hangs_or_is_of_another_version_is_named_in_words(viewer: Client) -> None:
    make_heartbeat("relay", version="2", started_at=Now() + timedelta(seconds=1))
    make_heartbeat("issuer", version="1")
    make_heartbeat("web", version="2", seen=100, turned=100)
    make_heartbeat("worker", version="2", turned=3600)
    page = html_of(viewer.get("/ops/processes"))
    rows = {line: page.split(f' scope="row">{line}</th>')[1].split("</tr>")[0] for line in
            ("relay", "issuer", "web", "worker")}  # fmt: skip
    assert ">alive<" in rows["relay"]
    assert "other version" not in rows["relay"]
    assert ">other version<" in rows["issuer"]
    assert ">silent<" in rows["web"]
    assert ">hanging<" in rows["worker"]
    # What needs attention stands above what is well.
    assert page.index(">silent<") < page.index(' scope="row">relay</th>')


def test_the_key_figures_are_met_missed_or_without_data(viewer: Client) -> None:
    assert html_of(viewer.get("/ops/")).count(">no data<") == 4
    lag = {"group": "issue", "topic": "t", "partition": 0, "lag": 5, "lagMs": 1500, "state": "ok"}
    make_heartbeat(groups=["issue"], partitions=[lag])
    counts = {
        "handled": 1000,
        "dead_letters": 0,
        "errors": 0,
        "passed_over": 0,
        "busy_seconds": 9.0,
        "message_seconds": 20.5,
    }
    Sample.objects.create(source="issue", seconds=5, counts=counts)
    page = html_of(viewer.get("/ops/"))
    figures = dict(zip(("lag", "success", "processing", "dead letters"), page.split('class="figure"')[1:], strict=True))
    assert "1,500 ms" in figures["lag"]
    assert ">missed<" in figures["lag"]
    assert ">met<" in figures["success"]
    assert "100 %" in figures["success"]
    assert "20.5 ms" in figures["processing"]
    assert ">met<" in figures["dead letters"]


def test_partitions_that_are_behind_come_first_and_those_without_a_consumer_say_so(viewer: Client) -> None:
    behind = {"group": "ranking", "topic": "t", "partition": 2, "lag": 7, "lagMs": 5000, "state": "retrying"}
    well = {"group": "issue", "topic": "t", "partition": 1, "lag": 0, "lagMs": 0, "state": "ok"}
    make_heartbeat(groups=["issue", "ranking"], partitions=[well, behind])
    SweptPartition.objects.create(consumer_group="results", topic="t", partition=0, messages=3, read_at=Now())
    page = html_of(viewer.get("/ops/")).split('id="lag"')[1]
    assert page.index(' scope="row">ranking</th>') < page.index(' scope="row">issue</th>')
    assert ">retrying<" in page
    assert ">none<" in page.split(' scope="row">results</th>')[1].split("</tr>")[0]


def test_the_partitions_of_a_topic_are_one_row(viewer: Client) -> None:
    well = [
        {"group": "ranking", "topic": "t", "partition": partition, "lag": 2, "lagMs": 5, "state": "ok"}
        for partition in (0, 1, 2, 5)
    ]
    late = {"group": "ranking", "topic": "t", "partition": 7, "lag": 3, "lagMs": 9000, "state": "retrying"}
    make_heartbeat(groups=["ranking"], partitions=[*well, late])
    page = html_of(viewer.get("/ops/")).split('id="lag"')[1]
    row = page.split(' scope="row">ranking</th>')[1].split("</tr>")[0]
    assert page.count(">ranking</th>") == 1
    assert ">0-2, 5, 7<" in row
    assert ">11<" in row
    assert "9,000 ms</span> on 7" in row
    assert ">retrying</span> on 7" in row


def test_a_process_unfolds_its_partitions_only_if_one_needs_attention(viewer: Client) -> None:
    held = {"group": "ranking", "topic": "t", "lag": 0, "lagMs": 0, "state": "ok"}
    process = make_heartbeat("consumer", partitions=[held | {"partition": partition} for partition in range(3)])
    page = html_of(viewer.get("/ops/processes"))
    assert "<details>" in page
    assert "3 partitions, none behind" in page
    assert "ranking: t 0-2 " in page
    ProcessHeartbeat.objects.filter(pk=process.pk).update(partitions=[held | {"partition": 1, "state": "retrying"}])
    assert "<details open>" in html_of(viewer.get("/ops/processes"))


def test_an_outbox_that_waits_for_long_stands_out(viewer: Client) -> None:
    publish_orders([1])
    assert "is-warning" not in html_of(viewer.get("/ops/")).split("Oldest of them")[1].split("</dd>")[0]
    OutboxMessage.objects.update(created_at=Now() - timedelta(seconds=46))
    assert 'is-warning">46' in html_of(viewer.get("/ops/")).split("Oldest of them")[1].split("</dd>")[0]


@pytest.fixture
def _no_error_of_redis() -> Iterator[None]:
    """Forgets that Redis was away."""
    caches["process"].clear()
    yield
    caches["process"].clear()


@pytest.mark.usefixtures("_no_error_of_redis")
def test_dashboard_and_alerts_say_that_redis_is_away(viewer: Client, settings: Settings) -> None:
    assert ">answers<" in html_of(viewer.get("/ops/"))
    with redis_away(settings):
        for path in (*PATHS, "/ops/alerts"):
            page = html_of(viewer.get(path))
            assert "Redis does not answer" in page
            assert "answer 503" in page


@pytest.mark.usefixtures("_no_error_of_redis")
def test_a_frozen_redis_is_waited_for_once(viewer: Client, settings: Settings) -> None:
    # The system accepts the connection; no process answers on it.
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        frozen.setblocking(False)
        there = settings.CACHES
        address = f"redis://127.0.0.1:{frozen.getsockname()[1]}/0"
        settings.CACHES = there | {"default": there["default"] | {"LOCATION": address}}
        for _ in range(3):
            assert "Redis does not answer" in html_of(viewer.get("/ops/panels"))
        settings.CACHES = there
        frozen.accept()[0].close()
        with pytest.raises(BlockingIOError):
            frozen.accept()
