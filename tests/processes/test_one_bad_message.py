"""One message that cannot be read on each topic: every process goes on, and everything else reaches its effect."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import pytest
from django.db import transaction

from coupons.models import Coupon, IssueRequest
from kafka_bridge.models import DeadLetter, ProcessedEvent
from kafka_bridge.outbox.writing import publish
from orders.ranking import store as ranking_view
from orders.ranking.days import last_days
from tests.effects.cast import completed_body, result_body
from tests.support.kafka import relay_everything
from tests.support.librdkafka import RawRecord, produce_raw
from tests.support.messages import request_body
from tests.support.orders import completed_event, make_paid_order, make_product
from tests.support.service import environment, run_command

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics", "redis_flushed")]

EFFECTS = ("notification", "data-platform", "ranking", "monitoring")


def put_bad(topic: str, body: dict[str, object]) -> None:
    """A message with a header name that is not UTF-8 on each partition that a few keys lead to."""
    keys = [b"%d" % number for number in range(3)]
    produce_raw(topic, [RawRecord(json.dumps(body).encode(), key, [(b"\xff", b"x")]) for key in keys])


def test_all_groups_and_the_rebuild_go_on_past_messages_that_cannot_be_read(make_coupon: Callable[..., Coupon]) -> None:
    coupon, tea = make_coupon(), make_product("Tea")
    put_bad("order-completed", completed_body(1))
    put_bad("coupon-issue-response", result_body(1))
    put_bad("coupon-issue-request", request_body(coupon, 1))
    orders = [make_paid_order({tea: 2}) for _ in range(10)]
    with transaction.atomic():
        publish(completed_event(order) for order in orders)
    relay_everything()
    asked = [json.dumps(request_body(coupon, user_id)).encode() for user_id in range(2, 12)]
    produce_raw("coupon-issue-request", [RawRecord(body) for body in asked])

    consumed = run_command("consume_coupons", "--until-idle", env=environment())

    assert consumed.returncode == 0, consumed.stderr
    assert "Traceback" not in consumed.stderr
    letters = Counter(DeadLetter.objects.values_list("consumer_group", flat=True))
    assert letters == dict.fromkeys((*EFFECTS, "issue", "results"), 3)
    handled = Counter(
        ProcessedEvent.objects.filter(consumer_group__in=EFFECTS).values_list("consumer_group", flat=True)
    )
    assert handled == dict.fromkeys(EFFECTS, 10)
    assert IssueRequest.objects.get(user_id=1).reason == "ERROR"
    assert IssueRequest.objects.filter(status="SUCCESS").count() == 10
    assert ranking_view.best(last_days(1), 1) == [(tea.pk, 20)]

    rebuilt = run_command("rebuild_views", "--from-topics", env=environment())
    assert ", 3 messages unreadable" in rebuilt.stdout.splitlines()[0], rebuilt.stderr
    assert ", 3 messages unreadable" in rebuilt.stdout.splitlines()[1]
    assert rebuilt.stderr.count("unreadable and left out: the name of a header is not UTF-8") == 6
    assert "Traceback" not in rebuilt.stderr
    assert ranking_view.best(last_days(1), 1) == [(tea.pk, 20)]
