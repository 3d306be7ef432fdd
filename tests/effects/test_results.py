"""Users are told how their request ended; and others may listen to the same results (seeds 001 and 004)."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from common.processes.lifecycle import StopFlag
from coupons.consumer_groups import ISSUE, RESULTS
from coupons.messages import read_result_task
from coupons.models import Coupon, Notification
from kafka_bridge import registry
from kafka_bridge.client import ensure_topics, group_lag
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import DeadLetter
from kafka_bridge.registry import ConsumerGroup, ReceivedMessage, register_group
from kafka_bridge.routes import overlay_groups, overlay_routes
from tests.effects.cast import TRACEPARENT, result, result_body
from tests.support.kafka import consume_everything, header, produce, read_to_end, relay_everything
from tests.support.messages import message, request_body
from tests.support.provider import Answer, Call, Provider

pytestmark = pytest.mark.django_db(transaction=True)

MakeCoupon = Callable[..., Coupon]


def handle(*batch: ReceivedMessage) -> None:
    BatchHandler(RESULTS).handle(batch, StopFlag())


def ask(coupon: Coupon, user_ids: Sequence[int]) -> None:
    produce("coupon-issue-request", [json.dumps(request_body(coupon, user_id)).encode() for user_id in user_ids])


def notices() -> dict[int, tuple[str, str | None]]:
    """By user: the template they were told with, and the reason it named."""
    rows = Notification.objects.values_list("user_id", "template_code", "variables")
    return {user_id: (code, variables["reason"]) for user_id, code, variables in rows}


def test_a_winner_and_a_loser_are_told_by_alimtalk(alimtalk: Provider) -> None:
    won, lost = result(1), result(2, "SOLD_OUT")
    handle(won, lost)
    said = {call.key: call for call in alimtalk.calls}
    assert json.loads(said[str(won.event_id)].body) == {
        "templateCode": "COUPON_ISSUED",
        "userId": 1,
        "variables": {
            "requestId": json.loads(won.value or b"")["requestId"],
            "couponType": "SUMMER",
            "status": "SUCCESS",
            "reason": None,
        },
    }
    body = json.loads(said[str(lost.event_id)].body)
    assert (body["templateCode"], body["userId"], body["variables"]["reason"]) == ("COUPON_NOT_ISSUED", 2, "SOLD_OUT")
    assert {call.headers["traceparent"] for call in alimtalk.calls} == {TRACEPARENT}
    assert not Notification.objects.exists()


@pytest.mark.parametrize("with_alimtalk", [True, False])
def test_of_a_request_that_nobody_could_read_nobody_is_told(with_alimtalk: bool, request: Any) -> None:
    provider = request.getfixturevalue("alimtalk") if with_alimtalk else None
    batch = [result(1), result(None, "ERROR"), result(3)]
    handle(*batch)
    if provider:
        assert {call.key for call in provider.calls} == {str(item.event_id) for item in batch[::2]}
    else:
        assert sorted(notices()) == [1, 3]
    assert not DeadLetter.objects.exists()


def test_the_error_of_a_call_stays_with_its_own_message(alimtalk: Provider) -> None:
    alimtalk.answer = lambda call: 422 if b'"userId":3' in call.body else 200
    batch = [result(None, "ERROR"), result(2), result(3), result(4)]
    handle(*batch)
    assert DeadLetter.objects.get().offset == batch[2].offset


def test_a_user_is_told_in_order(alimtalk: Provider) -> None:
    batch = [result(1), result(1, "ALREADY_ISSUED"), result(1, "SOLD_OUT"), result(2)]
    first = batch[0].event_id

    def answer(call: Call) -> Answer:
        # A consumer that does not wait for it overtakes it.
        return 503 if call.key == str(first) and alimtalk.tries(first) == 1 else 200

    alimtalk.answer = answer
    handle(*batch)
    said = [key for key in alimtalk.effects if key != str(batch[3].event_id)]
    assert said == [str(item.event_id) for item in batch[:3]]
    # And no other partition waits for that.
    assert next(iter(alimtalk.effects)) == str(batch[3].event_id)


def test_without_alimtalk_results_can_be_read_in_a_table() -> None:
    batch = [result(1), result(2, "ALREADY_ISSUED")]
    handle(*batch)
    handle(*batch)
    assert notices() == {1: ("COUPON_ISSUED", None), 2: ("COUPON_NOT_ISSUED", "ALREADY_ISSUED")}
    assert Notification.objects.count() == 2


def test_a_result_that_cannot_be_read_is_buried_and_the_others_are_told() -> None:
    poison = message(result_body(2, status="MAYBE"), topic="coupon-issue-response")
    handle(result(1), poison, result(3))
    assert sorted(notices()) == [1, 3]
    assert DeadLetter.objects.get().offset == poison.offset


@pytest.mark.usefixtures("topics")
def test_whoever_asked_for_a_coupon_is_told_how_that_ended(make_coupon: MakeCoupon) -> None:
    ask(make_coupon(total_quantity=2), [1, 2, 3])
    consume_everything(ISSUE)
    relay_everything()
    consume_everything(RESULTS)
    assert notices() == {1: ("COUPON_ISSUED", None), 2: ("COUPON_ISSUED", None), 3: ("COUPON_NOT_ISSUED", "SOLD_OUT")}


@pytest.fixture
def analytics(settings: Any) -> Iterator[Counter[str | None]]:
    """One more consumer of results, as a developer would add it: an id, a function and a registration."""
    settings.KAFKA_GROUPS = overlay_groups({**settings.KAFKA_GROUPS, "analytics": "coupon-analytics-group"}, {})
    reasons: Counter[str | None] = Counter()

    def count_reasons(tasks: Sequence[Any]) -> None:
        reasons.update(task.result.reason for task in tasks)

    register_group(
        ConsumerGroup(
            name="analytics",
            event_types=RESULTS.event_types,
            decode=read_result_task,
            handle=count_reasons,
            inbox=True,
        )
    )
    yield reasons
    del registry._groups["analytics"]


@pytest.mark.usefixtures("topics")
def test_one_more_consumer_of_results_is_a_registration_and_a_function(
    make_coupon: MakeCoupon, analytics: Counter[str | None]
) -> None:
    ask(make_coupon(total_quantity=2), [1, 1, 2, 3, 4])
    consume_everything(ISSUE)
    relay_everything()
    group = registry.groups()["analytics"]
    consume_everything(group)
    assert analytics == {None: 2, "ALREADY_ISSUED": 1, "SOLD_OUT": 2}
    # And those who are told have offsets of their own.
    assert group_lag(RESULTS.group_id, RESULTS.topics) == 5
    consume_everything(RESULTS)
    assert group_lag(RESULTS.group_id, RESULTS.topics) == 0
    assert len(notices()) == 4


SPLIT = {
    "coupon.issue.succeeded.v1": {"topic": "coupon-issue-succeeded"},
    "coupon.issue.failed.v1": {"topic": "coupon-issue-failed"},
}


@pytest.fixture
def split_topics(topics: str, settings: Any) -> Iterator[None]:
    """Results on two topics, as seed 004 has them."""
    settings.KAFKA_ROUTES = overlay_routes(settings.KAFKA_ROUTES, SPLIT)
    created, _ = ensure_topics(settings.KAFKA_ROUTES)
    yield
    admin = AdminClient({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS})
    for future in admin.delete_topics(created).values():
        future.result()


@pytest.mark.usefixtures("split_topics")
def test_results_on_two_topics_are_a_change_of_settings(make_coupon: MakeCoupon) -> None:
    ask(make_coupon(total_quantity=2), [1, 2, 3, 4, 5])
    consume_everything(ISSUE)
    relay_everything()

    def users(topic: str) -> set[tuple[int, str, str]]:
        bodies = [(json.loads(item.value() or b""), item) for item in read_to_end(topic)]
        return {(body["userId"], body["status"], header(item, "ce_type")) for body, item in bodies}

    assert users("coupon-issue-succeeded") == {(user, "SUCCESS", "coupon.issue.succeeded.v1") for user in (1, 2)}
    assert users("coupon-issue-failed") == {(user, "FAILED", "coupon.issue.failed.v1") for user in (3, 4, 5)}
    assert read_to_end("coupon-issue-response") == []
    consume_everything(RESULTS)
    assert {user: code for user, (code, _) in notices().items()} == {
        1: "COUPON_ISSUED", 2: "COUPON_ISSUED",
        3: "COUPON_NOT_ISSUED", 4: "COUPON_NOT_ISSUED", 5: "COUPON_NOT_ISSUED",
    }  # fmt: skip
    assert not DeadLetter.objects.exists()


@pytest.mark.usefixtures("split_topics")
def test_poison_on_a_split_topic_goes_to_the_dead_letters_of_that_topic() -> None:
    produce("coupon-issue-failed", [b"{"])
    consume_everything(RESULTS)
    relay_everything()
    (letter,) = read_to_end("coupon-issue-failed.DLT")
    assert letter.value() == b"{"
    assert header(letter, "x-consumer-group").endswith("coupon-result-group")
