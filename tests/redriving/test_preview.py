"""A preview says what a redrive would do, and leaves nothing but burnt ids."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from django.conf import settings as project
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models.functions import Now
from django_redis import get_redis_connection
from prometheus_client import REGISTRY
from pytest_django import Settings

from common.processes.outages import is_transient
from coupons.models import Coupon, IssueRequest
from devstack import wait_until
from kafka_bridge.client import LATEST, make_admin
from kafka_bridge.models import DeadLetter
from kafka_bridge.redriving import preview
from kafka_bridge.redriving.preview import Preview, PreviewBusy, preview_letters
from kafka_bridge.registry import ReceivedMessage, ReplayedMessage, groups
from tests.effects.cast import completed, headers, many_completed, result
from tests.redriving.cast import changed, faulty
from tests.redriving.letters import counts_of_preview, create, dead_letters, execute, insert_letters, step
from tests.support.messages import message, request_body, requests
from tests.support.provider import Provider
from tests.support.threads import in_another_session, lock

pytestmark = pytest.mark.django_db(transaction=True)

MakeCoupon = Callable[..., Coupon]

_TABLES = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"


def tables() -> dict[str, Any]:
    """The rows of every table, as text."""
    with connection.cursor() as cursor:
        cursor.execute(_TABLES)
        names = [name for (name,) in cursor.fetchall()]
        rows = {}
        for name in names:
            cursor.execute(f"SELECT coalesce(array_agg(row::text ORDER BY row::text), '{{}}') FROM {name} AS row")
            rows[name] = cursor.fetchone()
    return rows


def redis_contents() -> dict[bytes, bytes]:
    client = get_redis_connection("default")
    return {key: client.dump(key) for key in client.scan_iter()}


def metric_values() -> dict[tuple[str, str], float]:
    """Every value of this process, without those of the interpreter and of the clock."""
    return {
        (sample.name, str(sorted(sample.labels.items()))): sample.value
        for family in REGISTRY.collect()
        if not family.name.startswith(("python_", "process_"))
        for sample in family.samples
        if "seconds" not in sample.name or sample.name.endswith(("_count", "_sum", "_total", "_bucket"))
    }


def on_kafka() -> dict[tuple[str, int], int]:
    """The end of every partition of the topics."""
    admin = make_admin()
    partitions = [
        TopicPartition(name, number)
        for name, topic in admin.list_topics(timeout=30).topics.items()
        for number in topic.partitions
        if name.startswith(project.KAFKA_TOPIC_PREFIX)
    ]
    wait_until(lambda: all(has_leader(admin, name) for name in {one.topic for one in partitions}), 30, "no leaders")
    ends = admin.list_offsets(dict.fromkeys(partitions, LATEST))
    return {(partition.topic, partition.partition): end.result().offset for partition, end in ends.items()}


def has_leader(admin: AdminClient, name: str) -> bool:
    """Whether the brokers answer for every partition of a topic, which is new."""
    partitions = admin.list_topics(name, timeout=30).topics[name].partitions
    ends = admin.list_offsets({TopicPartition(name, number): LATEST for number in partitions})
    return all(end.exception() is None for end in ends.values())


def preview_all(**options: Any) -> Preview:
    ids = list(DeadLetter.objects.order_by("id").values_list("id", flat=True))
    return preview_letters(ids, total=len(ids), **options)


def letters_of_every_group(coupon: Coupon, gate_coupon: Coupon) -> dict[str, list[ReceivedMessage]]:
    orders = [completed(1), completed(2), message(b"{", topic="order-completed")]
    return {
        "issue": [*requests(coupon, [1, 2, 3]), *requests(gate_coupon, [1]), message(b"{")],
        "results": [result(1), result(2, "SOLD_OUT"), message(b"{", topic="coupon-issue-response")],
        "notification": orders,
        "data-platform": orders,
        "ranking": orders,
        "monitoring": orders,
        "dead-letters": [message(b"{", topic="order-completed.DLT")],
        "relay": [message(request_body(coupon, 9), headers=headers("coupon.issue.requested.v1"))],
    }


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may not get through 500 letters in two seconds."""
    monkeypatch.setattr(preview, "PREVIEW_SECONDS", 60.0)


@pytest.mark.usefixtures("loaded", "unhurried")
def test_a_preview_of_every_group_leaves_everything_as_it_was(
    make_coupon: MakeCoupon, gate_coupon: Coupon, provider: Provider, topics: str, settings: Settings
) -> None:
    settings.ALIMTALK_URL = settings.DATA_PLATFORM_URL = provider.url
    settings.ALIMTALK_KEY = "the-key"
    settings.ALERT_ORDERS_PER_MINUTE = 1
    letters = letters_of_every_group(make_coupon(total_quantity=2, coupon_type="TWO"), gate_coupon)
    assert set(letters) >= {name for name in groups() if name not in ("bookings", "notices")}
    for name, messages in letters.items():
        dead_letters(name, messages)
    before = tables(), redis_contents(), on_kafka(), metric_values()
    found = preview_all()
    assert provider.calls == []
    after = tables(), redis_contents(), on_kafka(), metric_values()
    for was, now in zip(before, after, strict=True):
        assert now == was
    assert "a preview makes no call: whether the receiver accepts it is not known" in found.notes
    # And each group's handler ran: there is something that could have been left.
    assert found.counts["applied"] >= 12
    assert found.counts["failed"] >= 5
    assert found.kinds["SUCCESS"] >= 3
    assert found.kinds["SOLD_OUT"] == 2


def test_each_letter_sees_the_effects_of_those_before_it(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=2)
    dead_letters("issue", requests(coupon, [1, 2, 2, 3]))
    redrive = execute(create())
    assert redrive.preview is not None
    assert redrive.preview["kinds"] == {"SUCCESS": 2, "ALREADY_ISSUED": 1, "SOLD_OUT": 1}
    assert counts_of_preview(redrive) == redrive.counts == {"applied": 4}
    assert IssueRequest.objects.filter(status="SUCCESS").count() == 2


@pytest.mark.usefixtures("unhurried")
def test_of_a_larger_set_an_even_sample_is_looked_at() -> None:
    insert_letters(750)
    redrive = create()
    step()
    redrive.refresh_from_db()
    assert redrive.preview is not None
    assert (redrive.preview["looked_at"], redrive.preview["total"]) == (500, 750)
    assert sum(redrive.preview["counts"].values()) == 500
    assert "500 of 750 letters were looked at, evenly spread" in redrive.preview["notes"]


def test_a_letter_behind_a_lock_is_not_previewed_and_delays_the_others_little(make_coupon: MakeCoupon) -> None:
    locked, free = make_coupon(coupon_type="LOCKED"), make_coupon(coupon_type="FREE")
    dead_letters("issue", [*requests(locked, [1]), *requests(free, [1])])
    with lock("SELECT FROM coupons_coupon WHERE id = %s FOR UPDATE", locked.id):
        began_at = time.monotonic()
        found = preview_all()
        assert time.monotonic() - began_at < 3
    assert found.counts == {"not_previewed": 1, "applied": 1}
    assert "waited for a lock" in found.examples["not_previewed"][0][1]


def test_a_preview_ends_after_two_seconds_with_the_letters_it_has(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    dead_letters("issue", requests(coupon, list(range(1, 21))))
    with lock("SELECT FROM coupons_coupon WHERE id = %s FOR UPDATE", coupon.id):
        began_at = time.monotonic()
        found = preview_all()
        assert time.monotonic() - began_at < 4
    # The locks of ten letters were waited for.
    assert found.counts == {"not_previewed": 20}


class Hands:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_when_the_time_ends_the_letters_that_had_a_turn_are_spread_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    hands, handled = Hands(), list[int]()
    monkeypatch.setattr(preview, "time", hands)
    messages = many_completed(range(1, 101))
    ids = dead_letters("monitoring", messages)

    def take_long(values: Any) -> None:
        handled.append(values[0].offset)
        hands.now += 0.05

    changed(replace(groups()["monitoring"], decode=lambda message: message, handle=take_long), monkeypatch)
    found = preview_letters(ids, total=300)
    assert 36 <= len(handled) <= 42
    ends = messages[0].offset - 1, messages[-1].offset + 1
    assert max(later - earlier for earlier, later in pairwise([ends[0], *handled, ends[1]])) <= 4
    assert sum(found.counts.values()) == 100
    (note,) = found.notes
    assert re.fullmatch(r"2 s were enough for (\d+) of 300 letters, evenly spread", note)


def test_the_statements_of_one_letter_have_two_seconds_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "PREVIEW_SECONDS", 0.5)
    ids = dead_letters("monitoring", many_completed([1]))

    def take_long(values: Any) -> None:
        for _ in range(10):
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_sleep(0.4)")

    faulty("monitoring", take_long, monkeypatch)
    began_at = time.monotonic()
    assert preview_letters(ids, total=1).counts == {"not_previewed": 1}
    assert time.monotonic() - began_at < 3


def test_a_process_that_hangs_in_a_preview_holds_its_locks_no_longer_than_a_preview_lasts(
    make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "PREVIEW_SECONDS", 0.5)
    coupon = make_coupon()
    ids = dead_letters("issue", requests(coupon, [1]))
    goes_on = threading.Event()

    def hang(replayed: ReplayedMessage) -> str:
        Coupon.objects.select_for_update().get(pk=coupon.pk)
        goes_on.wait(10)
        return f"{Coupon.objects.count()} coupons"

    changed(replace(groups()["issue"], replay=hang), monkeypatch)
    previewed = in_another_session(lambda: preview_letters(ids, total=1, accepts_delay=True))
    wait_until(lambda: is_locked(coupon), 10, "the preview does not lock the coupon", 0.01)
    wait_until(lambda: not is_locked(coupon), 5, "the coupon stays locked", 0.05)
    goes_on.set()
    with pytest.raises((OperationalError, InterfaceError)) as raised:
        previewed.result(10)
    assert is_transient(raised.value)


def is_locked(coupon: Coupon) -> bool:
    with transaction.atomic():
        return not Coupon.objects.select_for_update(skip_locked=True).filter(pk=coupon.pk).exists()


def test_where_running_sales_cannot_be_seen_in_time_no_letter_is_previewed(make_coupon: MakeCoupon) -> None:
    ids = dead_letters("issue", requests(make_coupon(), [1, 2]))
    with lock("LOCK TABLE kafka_bridge_outboxmessage IN ACCESS EXCLUSIVE MODE"):
        found = preview_letters(ids, total=2)
    assert found.counts == {"not_previewed": 2}
    assert found.seconds < 1.5
    assert "no time to see what it would disturb" in found.notes[0]
    assert preview_letters(ids, total=2).counts == {"applied": 2}


def decide_a_request(coupon: Coupon) -> None:
    """Decide a request a moment ago."""
    dead_letters("issue", requests(coupon, [99]))
    execute(create())


def test_a_coupon_on_sale_is_previewed_only_when_paused_or_when_the_delay_is_accepted(
    make_coupon: MakeCoupon,
) -> None:
    on_sale, calm = make_coupon(coupon_type="ON_SALE"), make_coupon(coupon_type="CALM")
    decide_a_request(on_sale)
    ids = dead_letters("issue", [*requests(on_sale, [1]), *requests(calm, [1])])
    found = preview_letters(ids, total=2)
    assert found.counts == {"not_previewed": 1, "applied": 1}
    assert "coupon ON_SALE had decisions" in found.notes[0]
    assert preview_letters(ids, total=2, accepts_delay=True).counts == {"applied": 2}
    Coupon.objects.filter(pk=on_sale.pk).update(paused=True)
    assert preview_letters(ids, total=2).counts == {"applied": 2}


def test_decisions_of_ten_seconds_ago_disturb_no_sale(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    decide_a_request(coupon)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE kafka_bridge_outboxmessage SET created_at = created_at - interval '11 seconds'")
    ids = dead_letters("issue", requests(coupon, [1]))
    assert preview_letters(ids, total=1).counts == {"applied": 1}


@pytest.fixture
def other_preview() -> Iterator[None]:
    with lock("SELECT pg_advisory_xact_lock(%s)", 7_205_759_403):
        yield


@pytest.mark.usefixtures("other_preview")
def test_one_preview_is_made_at_a_time() -> None:
    dead_letters("monitoring", many_completed([1]))
    redrive, _ = create(), create()
    # It does not try again at once.
    assert not step()
    redrive.refresh_from_db()
    assert redrive.preview is None
    with pytest.raises(PreviewBusy):
        preview_all()


def test_closed_and_deleted_letters_are_done_already() -> None:
    closed, deleted = dead_letters("monitoring", many_completed([1, 2]))
    redrive = create()
    DeadLetter.objects.filter(pk=closed).update(closed_at=Now())
    DeadLetter.objects.filter(pk=deleted).delete()
    execute(redrive)
    assert counts_of_preview(redrive) == redrive.counts == {"done_already": 2}
