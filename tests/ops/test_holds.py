"""The page of holds: topics and keys that operators hold, held rows, and what operators do with them."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from pytest_django import Settings

from kafka_bridge.models import HeldMessage, OperatorAction, OutboxHold, OutboxMessage
from kafka_bridge.operating.operator_holds import hold_messages, hold_release
from tests.admin.pages import html_of, messages_of
from tests.support.outbox import TOPIC, publish_orders
from tests.support.threads import OpenTransaction, in_another_session, wait_until_blocked

PATH = "/ops/holds"


def hold(client: Client, **values: Any) -> Any:
    return client.post(
        f"{PATH}/hold", {"topic": TOPIC, "key": "", "key_format": "text", "reason": "wrong price"} | values
    )


def keep_back(*order_ids: int, reason: str = "key", **fields: Any) -> None:
    """Have these orders' events held."""
    publish_orders(list(order_ids))
    for row in OutboxMessage.objects.order_by("-id")[: len(order_ids)]:
        HeldMessage.objects.create(message_id=row.id, shard=row.shard, topic=row.topic, reason=reason, **fields)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({}, None), ({"key": "4711"}, b"4711"), ({"key": " 4711 "}, b"4711"), ({"key": "여름"}, "여름".encode()),
        ({"key": "ff 00", "key_format": "hex"}, b"\xff\0"), ({"key": "FF00", "key_format": "hex"}, b"\xff\0"),
    ],
)  # fmt: skip
def test_a_topic_or_a_key_is_held_with_a_reason(operator: Client, values: dict[str, str], key: bytes | None) -> None:
    response = hold(operator, **values, reason="wrong <price>")
    assert (response.status_code, response["Location"]) == (303, PATH)
    row = OutboxHold.objects.get()
    assert (row.topic, row.key and bytes(row.key), row.reason, row.actor) == (TOPIC, key, "wrong <price>", "olga")
    assert "wrong &lt;price&gt;" in html_of(operator.get(PATH))


def test_a_topic_can_be_named_as_the_broker_has_it(operator: Client, settings: Settings) -> None:
    settings.KAFKA_TOPIC_PREFIX = "live-"
    hold(operator, topic=f"live-{TOPIC}")
    assert OutboxHold.objects.get().topic == TOPIC


@pytest.mark.parametrize(
    "wrong",
    [
        {"topic": "no-such-topic"}, {"topic": ""}, {"topic": "a\0"}, {"topic": "x" * 250},
        {"key": "a\0"}, {"key": "x" * 1001}, {"key": "xyz", "key_format": "hex"}, {"key": "f", "key_format": "hex"},
        {"key": "ff", "key_format": "octal"}, {"reason": ""}, {"reason": "  "}, {"reason": "x" * 501},
    ],
)  # fmt: skip
def test_a_hold_that_makes_no_sense_is_refused_with_the_form(operator: Client, wrong: dict[str, str]) -> None:
    response = hold(operator, **wrong)
    assert (response.status_code, 'class="errorlist"' in response.content.decode()) == (400, True)
    assert not OutboxHold.objects.exists()
    assert not OperatorAction.objects.exists()


def test_a_topic_of_former_routes_can_be_held_while_rows_of_it_wait(operator: Client) -> None:
    HeldMessage.objects.create(message_id=1, shard=1, topic="former", reason="topic")
    assert hold(operator, topic="former").status_code == 303
    assert OutboxHold.objects.get().topic == "former"


def test_what_is_held_already_stays_as_it_is_and_says_why(operator: Client) -> None:
    hold(operator, key="7", reason="first")
    hold(operator, key="7", reason="second")
    assert OutboxHold.objects.get().reason == "first"
    assert "held already: key 7 of topic order-completed (first)" in messages_of(operator.get(PATH))[-1]
    assert OperatorAction.objects.count() == 1


def test_a_hold_is_released_once_and_both_are_in_the_audit_trail(operator: Client) -> None:
    hold(operator, key="7")
    given = {"hold": OutboxHold.objects.get().pk, "reason": "corrected"}
    assert operator.post(f"{PATH}/release", given).status_code == 303
    assert operator.post(f"{PATH}/release", given).status_code == 303
    assert "released before" in messages_of(operator.get(PATH))[-1]
    assert not OutboxHold.objects.exists()
    values = {"topic": TOPIC, "key": "7", "reason": "wrong price", "actor": "olga"}
    found = OperatorAction.objects.order_by("id").values_list("action", "actor", "subject", "reason", "before", "after")
    assert list(found) == [
        ("hold.create", "olga", "key 7 of topic order-completed", "wrong price", None, values),
        ("hold.release", "olga", "key 7 of topic order-completed", "corrected", values, None),
    ]


@pytest.mark.parametrize("wrong", [{"reason": " "}, {"hold": "x"}, {"hold": "0"}, {"hold": str(2**63)}])
def test_a_release_without_a_reason_or_a_hold_is_refused(operator: Client, wrong: dict[str, str]) -> None:
    hold(operator)
    response = operator.post(f"{PATH}/release", {"hold": OutboxHold.objects.get().pk, "reason": "corrected"} | wrong)
    assert response.status_code == 400
    assert messages_of(response)[-1].startswith(("Reason:", "Hold:"))
    assert OutboxHold.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_hold_that_two_operators_release_at_once_is_released_by_one() -> None:
    made, _ = hold_messages(topic=TOPIC, key=b"7", actor="olga", reason="wrong price")
    with OpenTransaction(lambda: hold_release(hold_id=made.pk, actor="olga", reason="corrected")) as first:
        second = in_another_session(lambda: hold_release(hold_id=made.pk, actor="victor", reason="corrected"))
        wait_until_blocked(beside=second)
        first.commit()
        assert second.result(10) is None
    assert OperatorAction.objects.get(action="hold.release").actor == "olga"


@pytest.mark.django_db(transaction=True)
def test_the_page_shows_what_waits_since_when_the_attempts_and_the_last_error(operator: Client) -> None:
    keep_back(7, 7, 8)
    keep_back(9, reason="topic", attempts=12, last_error="topic x <has> no leader")
    hold(operator, key="7")
    response = operator.get(PATH)
    page = html_of(response)
    assert "topic x &lt;has&gt; no leader" in page
    by_topic = [(rows.topic, rows.reason, rows.number, rows.attempts) for rows, _ in response.context["by_topic"]]
    assert by_topic == [(TOPIC, "key", 3, 0), (TOPIC, "topic", 1, 12)]
    by_key = [(key, rows.number, is_held) for rows, key, is_held in response.context["by_key"]]
    assert by_key == [("7", 2, True), ("8", 1, False)]
    assert "<option>order-completed</option>" in page
    hold(operator)
    page = html_of(operator.get(PATH))
    # What an operator holds is not tried.
    assert "<option>order-completed</option>" not in page


@pytest.mark.django_db(transaction=True)
def test_rows_that_wait_for_their_key_alone_are_not_offered_for_a_retry(operator: Client) -> None:
    keep_back(7, 8)
    hold(operator, key="7")
    page = html_of(operator.get(PATH))
    assert "for their key, see below" in page
    assert "<option>order-completed</option>" not in page


def test_the_page_says_what_the_key_of_a_topic_is(operator: Client) -> None:
    page = html_of(operator.get(PATH))
    assert "coupon-issue-request: couponType" in page
    assert "order-completed: orderId" in page


@pytest.mark.django_db(transaction=True)
def test_a_retry_is_for_topics_with_held_rows_and_has_a_reason(operator: Client) -> None:
    given = {"topic": TOPIC, "reason": "the topic is there again"}
    operator.post(f"{PATH}/retry", given)
    assert "No row of topic order-completed is held" in messages_of(operator.get(PATH))[-1]
    assert not OperatorAction.objects.exists()
    keep_back(9, reason="topic")
    assert operator.post(f"{PATH}/retry", given | {"reason": ""}).status_code == 400
    assert operator.post(f"{PATH}/retry", given).status_code == 303
    action = OperatorAction.objects.get()
    assert (action.action, action.subject, action.reason) == (
        "hold.retry", "topic order-completed", "the topic is there again",
    )  # fmt: skip


@pytest.mark.django_db(transaction=True)
def test_a_retry_from_an_old_form_says_that_the_topic_is_held_meanwhile(operator: Client) -> None:
    keep_back(9, reason="topic")
    hold(operator, reason="wrong price")
    assert operator.post(f"{PATH}/retry", {"topic": TOPIC, "reason": "it is there again"}).status_code == 303
    assert messages_of(operator.get(PATH))[-1].startswith(
        "Nothing is tried: olga holds topic order-completed (wrong price). Release it"
    )
    assert not OperatorAction.objects.filter(action="hold.retry").exists()
    # A hold of a key leaves the topic's other rows to be tried.
    hold_release(hold_id=OutboxHold.objects.get().pk, actor="olga", reason="corrected")
    hold(operator, key="7")
    operator.post(f"{PATH}/retry", {"topic": TOPIC, "reason": "it is there again"})
    assert messages_of(operator.get(PATH))[-1].startswith("The relay tries topic order-completed now")


def test_a_viewer_sees_the_holds_and_no_form_and_is_refused(viewer: Client, db: None) -> None:
    made, _ = hold_messages(topic=TOPIC, key=None, actor="olga", reason="wrong price")
    page = html_of(viewer.get(PATH))
    assert "wrong price" in page
    assert f"{PATH}/" not in page
    for response in (
        hold(viewer),
        viewer.post(f"{PATH}/release", {"hold": made.pk, "reason": "mine"}),
        viewer.post(f"{PATH}/retry", {"topic": TOPIC, "reason": "mine"}),
    ):
        assert (response.status_code, "kafka_bridge.hold_messages" in response.content.decode()) == (403, True)
    assert OutboxHold.objects.get() == made
