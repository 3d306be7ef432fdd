"""``rebuild_views``: the ranking and the status views from PostgreSQL, or from what lies on the topics."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django_redis import get_redis_connection
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from coupons import selectors
from coupons.consumer_groups import ISSUE
from coupons.issuance import status_cache
from coupons.models import Coupon, IssueRequest
from kafka_bridge.client import delete_topics, ensure_topics
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import OutboxMessage
from kafka_bridge.outbox.writing import publish
from kafka_bridge.routes import overlay_routes
from orders.effects import ranking
from orders.models import Order, Product
from orders.ranking import store as ranking_view
from orders.ranking.days import last_days
from tests.support.kafka import consume_everything, produce, relay_everything
from tests.support.messages import requests
from tests.support.orders import (
    cancelled,
    cancelled_event,
    completed,
    completed_event,
    make_paid_order,
    make_product,
)
from tests.support.service import environment, run_command

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("redis_flushed")]


@pytest.fixture
def tea(transactional_db: None) -> Product:
    return make_product("Tea")


@pytest.fixture
def summer(make_coupon: Callable[..., Coupon], redis_flushed: None) -> Coupon:
    """Two pieces, three who want one, and one of them wants two."""
    coupon = make_coupon(coupon_type="SUMMER", total_quantity=2)
    BatchHandler(ISSUE).handle(requests(coupon, [1, 1, 2, 3]), StopFlag())
    return coupon


def redis() -> Any:
    return get_redis_connection("default")


def report(*arguments: str) -> list[str]:
    """What the command prints, and what it complains about in the end."""
    out = StringIO()
    try:
        call_command("rebuild_views", *arguments, stdout=out)
    except CommandError as error:
        return [*out.getvalue().splitlines(), f"exit 1: {error}"]
    return out.getvalue().splitlines()


def sold() -> list[tuple[int, int]] | None:
    return ranking_view.best(last_days(30), 10)


def statuses() -> dict[str, Any]:
    ids = list(IssueRequest.objects.values_list("request_id", flat=True))
    return {str(request_id): status for request_id, status in status_cache.load(ids).items()}


def assert_views_are_postgresqls() -> None:
    views = statuses()
    assert len(views) == 4
    assert views == {str(row.request_id): selectors.terminal_status(row) for row in IssueRequest.objects.all()}


# From PostgreSQL


def test_what_a_flush_took_is_there_again(tea: Product, summer: Coupon) -> None:
    make_paid_order({tea: 3})
    make_paid_order({tea: 4}, cancelled_at=datetime.now(UTC))
    redis().flushdb()
    lines = report()
    assert sold() == [(tea.pk, 3)]
    assert_views_are_postgresqls()
    days = last_days(31)
    assert lines[0] == f"ranking: 3 events of orders paid from {days[0]} to {days[-1]}"
    assert lines[1] == "cached statuses: 4 results of the last day"
    assert lines[2].startswith("coupon SUMMER: 2 issued, 2 failed (ALREADY_ISSUED 1, SOLD_OUT 1), first 20")
    assert lines[2].endswith("; counter 2 of 2, 2 in users' hands")
    assert len(lines) == 3


def test_answers_that_are_older_than_redis_keeps_them_stay_out(summer: Coupon) -> None:
    old = IssueRequest.objects.order_by("user_id", "offset").first()
    assert old is not None
    IssueRequest.objects.filter(pk=old.pk).update(processed_at=old.processed_at - timedelta(hours=25))
    redis().flushdb()
    assert report()[1] == "cached statuses: 3 results of the last day"
    assert status_cache.load([old.request_id]) == {}


def test_many_rows_come_in_batches(summer: Coupon) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO coupons_issuerequest (request_id, coupon_type, status, source, processed_at, topic,"
            ' partition, "offset") SELECT gen_random_uuid(), %s, %s, %s, statement_timestamp(), %s, 0, n'
            " FROM generate_series(1, 2500) n",
            ["SUMMER", "FAILED", "API", "coupon-issue-request"],
        )
    redis().flushdb()
    assert report()[1] == "cached statuses: 2504 results of the last day"
    assert sum(1 for _ in redis().scan_iter("status:*", count=1000)) == 2504


def test_a_rebuild_under_way_is_told_of() -> None:
    with ranking_view.rebuilding():
        (line,) = report()
    assert line.startswith("exit 1: the ranking is already being rebuilt; wait until")


def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return run_command("rebuild_views", *arguments, env=environment(**changes))


def test_without_redis_it_cannot_start() -> None:
    done = run("--wait", "0.2", REDIS_URL="redis://127.0.0.1:1/0")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Redis does not answer" in done.stderr
    assert "Traceback" not in done.stderr


# From the topics


def publish_orders(*orders: Order) -> None:
    """Their events to the topics, the cancellations first."""
    with transaction.atomic():
        publish(cancelled_event(order) for order in orders if order.cancelled_at)
        publish(completed_event(order) for order in orders)
    relay_everything()


@pytest.fixture
def history(topics: str, tea: Product, summer: Coupon) -> list[Order]:
    """All that happened lies on the topics, some of it twice."""
    orders = [
        make_paid_order({tea: 3}),
        make_paid_order({tea: 4}, cancelled_at=datetime.now(UTC)),
        make_paid_order({tea: 5}, paid_at=datetime.now(UTC) - timedelta(days=50)),
    ]
    publish_orders(*orders)
    OutboxMessage.objects.update(published_at=None)
    relay_everything()
    return orders


def test_the_topics_alone_bring_everything_back(history: list[Order], tea: Product) -> None:
    before = statuses()
    Order.objects.all().delete()
    redis().flushdb()
    done = run("--from-topics")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert sold() == [(tea.pk, 3)]
    assert statuses() == before
    assert lines[0].startswith("ranking: 3 events of orders paid from ")
    assert lines[1] == "cached statuses: 4 results of the last day, 0 messages unreadable"
    assert lines[2].startswith("coupon SUMMER: 2 issued, 2 failed (ALREADY_ISSUED 1, SOLD_OUT 1), first 20")
    assert lines[2].endswith("; counter 2 of 2, 2 in users' hands; PostgreSQL agrees")


def test_what_the_topics_brought_is_not_counted_again(history: list[Order], tea: Product) -> None:
    report("--from-topics")
    BatchHandler(ranking.group()).handle([cancelled(history[1]), *(completed(order) for order in history)], StopFlag())
    assert sold() == [(tea.pk, 3)]


def test_the_consumers_go_on_from_their_own_offsets(history: list[Order], tea: Product) -> None:
    report("--from-topics")
    consume_everything(ranking.group())
    publish_orders(make_paid_order({tea: 1}))
    consume_everything(ranking.group())
    assert sold() == [(tea.pk, 4)]


def test_messages_that_nobody_can_read_are_told_of_and_passed_over(history: list[Order], tea: Product) -> None:
    produce("order-completed", [b"{", None, b"{}"], headers={"ce_type": b"order.completed.v1"})
    produce("order-completed", [b"{}"], headers={"ce_type": b"order.completed.v9"})
    produce("coupon-issue-response", [b"\xff"])
    lines = report("--from-topics")
    assert sold() == [(tea.pk, 3)]
    assert lines[0].endswith(", 4 messages unreadable")
    assert lines[1].endswith(" 4 results of the last day, 1 messages unreadable")
    assert lines[2].endswith("PostgreSQL agrees")


@pytest.mark.usefixtures("history")
def test_a_coupon_of_which_the_topics_tell_something_else_is_named() -> None:
    IssueRequest.objects.filter(reason="SOLD_OUT").delete()
    lines = report("--from-topics")
    assert "; PostgreSQL DIFFERS: 2 issued, 1 failed (ALREADY_ISSUED 1), first 20" in lines[2]
    assert lines[3] == "exit 1: 1 coupons differ between the topics and PostgreSQL"


def test_results_that_wait_in_the_outbox_are_no_difference(history: list[Order], summer: Coupon) -> None:
    BatchHandler(ISSUE).handle(requests(summer, [4, 5]), StopFlag())
    lines = report("--from-topics")
    assert lines[2].startswith("coupon SUMMER: 2 issued, 2 failed")
    assert lines[2].endswith("PostgreSQL agrees")


def test_topics_that_were_split_and_renamed_are_found(settings: Settings, tea: Product, summer: Coupon) -> None:
    names = {
        "coupon.issue.succeeded.v1": "coupon-issue-succeeded",
        "coupon.issue.failed.v1": "coupon-issue-failed",
        "order.completed.v1": "orders",
        "order.cancelled.v1": "orders",
    }
    changed = {name: {"topic": topic} for name, topic in names.items()}
    settings.KAFKA_ROUTES = overlay_routes(settings.KAFKA_ROUTES, changed)
    settings.KAFKA_TOPIC_PREFIX = f"t{secrets.token_hex(4)}-"
    created, _ = ensure_topics(settings.KAFKA_ROUTES)
    try:
        # The outbox names the topic that a row had when it was written.
        for event_type in names:
            OutboxMessage.objects.filter(event_type=event_type).update(topic=names[event_type])
        publish_orders(make_paid_order({tea: 3}), make_paid_order({tea: 4}, cancelled_at=datetime.now(UTC)))
        redis().flushdb()
        lines = report("--from-topics")
    finally:
        delete_topics(created)
    assert sold() == [(tea.pk, 3)]
    assert_views_are_postgresqls()
    assert lines[2].endswith("PostgreSQL agrees")


def test_what_was_published_before_a_change_of_routes_is_read_from_the_former_topics(
    settings: Settings, history: list[Order], tea: Product, summer: Coupon
) -> None:
    changed = {
        "coupon.issue.succeeded.v1": {"topic": "coupon-issue-succeeded", "key": "couponId"},
        "coupon.issue.failed.v1": {"topic": "coupon-issue-failed", "key": "couponId"},
        "order.completed.v1": {"topic": "trace-topic"},
    }
    former = {name: (settings.KAFKA_ROUTES[name].topic,) for name in changed}
    keys = settings.INTERCHANGEABLE_EVENT_KEYS
    settings.KAFKA_ROUTES = overlay_routes(settings.KAFKA_ROUTES, changed, interchangeable_keys=keys)
    created, _ = ensure_topics(settings.KAFKA_ROUTES)
    try:
        # The topic alone has the type of this one.
        produce("order-completed", [completed(make_paid_order({tea: 4})).value])
        publish_orders(make_paid_order({tea: 2}))
        BatchHandler(ISSUE).handle(requests(summer, [4]), StopFlag())
        relay_everything()
        assert "; PostgreSQL DIFFERS: " in report("--from-topics")[2]
        settings.KAFKA_FORMER_TOPICS = former
        redis().flushdb()
        lines = report("--from-topics")
    finally:
        delete_topics(created)
    assert sold() == [(tea.pk, 9)]
    assert lines[0].endswith(", 0 messages unreadable")
    assert lines[1] == "cached statuses: 5 results of the last day, 0 messages unreadable"
    assert lines[2].endswith("PostgreSQL agrees")


def test_topics_that_are_not_there_are_told_of(settings: Settings) -> None:
    settings.KAFKA_TOPIC_PREFIX = f"t{secrets.token_hex(4)}-"
    (line,) = report("--from-topics")
    assert line.startswith(f"exit 1: there is no topic {settings.KAFKA_TOPIC_PREFIX}order-cancelled: run create_topics")
    assert ranking_view.best(last_days(1), 1) is None
