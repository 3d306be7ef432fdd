"""Poison becomes a dead letter, its request ends with ERROR, and the others of the batch are handled."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from django.db import OperationalError

from common.processes.lifecycle import StopFlag
from coupons.consumer_groups import ISSUE
from coupons.issuance import issue
from coupons.messages import IssueTask
from coupons.models import Coupon, IssueRequest, UserCoupon
from kafka_bridge.cloudevents import decode_headers
from kafka_bridge.consuming import batch as batches
from kafka_bridge.consuming.batch import BatchHandler, BatchInterrupted
from kafka_bridge.errors import PoisonLimitExceeded
from kafka_bridge.models import DeadLetter, OutboxMessage
from kafka_bridge.registry import ReceivedMessage
from tests.support.messages import message, request_body, request_id, requests

pytestmark = pytest.mark.django_db(transaction=True)

MakeCoupon = Callable[..., Coupon]


@pytest.fixture(autouse=True)
def _no_pause_between_tries(settings: Any) -> None:
    settings.CONSUMER_BACKOFF_SECONDS = 0.01


def handle(batch: Sequence[ReceivedMessage]) -> None:
    BatchHandler(ISSUE).handle(batch, StopFlag())


def answer(received: ReceivedMessage) -> tuple[str, str | None]:
    row = IssueRequest.objects.get(request_id=request_id(received))
    return row.status, row.reason


def failing_for(user_id: int, error: Exception) -> Callable[[Sequence[IssueTask]], None]:
    """An issuer with a fault that one user's requests bring out."""

    def handle(tasks: Sequence[IssueTask]) -> None:
        if any(task.request.user_id == user_id for task in tasks):
            raise error
        issue.issue_many(tasks)

    return handle


CEILING = 2**63

UNREADABLE: dict[str, Callable[[Coupon], bytes | dict[str, Any] | None]] = {
    "no body": lambda coupon: None,
    "an empty body": lambda coupon: b"",
    "not JSON": lambda coupon: b"{",
    "not UTF-8": lambda coupon: b'{"couponType":"\xff"}',
    "a list": lambda coupon: b"[]",
    "NUL in the coupon type": lambda coupon: request_body(coupon, 1, couponType="A\0"),
    "a lone surrogate": lambda coupon: request_body(coupon, 1, couponType="\ud800"),
    "nesting without end": lambda coupon: b'{"x":' + b"[" * 100_000,
    "NaN": lambda coupon: b'{"userId":NaN}',
    "a text for the user": lambda coupon: request_body(coupon, 1, userId="1"),
    "a fraction for the user": lambda coupon: request_body(coupon, 1, userId=1.5),
    "a truth for the user": lambda coupon: request_body(coupon, 1, userId=True),
    "user zero": lambda coupon: request_body(coupon, 0),
    "a user past 64 bits": lambda coupon: request_body(coupon, CEILING),
    "no user": lambda coupon: request_body(coupon, 1, userId=...),
    "neither coupon nor type": lambda coupon: request_body(coupon, 1, couponId=..., couponType=...),
    "an id and a type of two coupons": lambda coupon: request_body(coupon, 1, couponType="SOMETHING_ELSE"),
    "a day that is none": lambda coupon: request_body(coupon, 1, requestedAt="2026-02-30T00:00:00"),
    "the end of the calendar": lambda coupon: request_body(coupon, 1, requestedAt="9999-12-31T23:59:59-12:00"),
    "the beginning of the calendar": lambda coupon: request_body(coupon, 1, requestedAt="0001-01-01T00:00:00+12:00"),
    "an unknown source": lambda coupon: request_body(coupon, 1, source="MAGIC"),
    "a request id that is none": lambda coupon: request_body(coupon, 1, requestId="1"),
    "neither request id nor event id": lambda coupon: request_body(coupon, 1, requestId=...),
    "a megabyte": lambda coupon: b"x" * 1_000_000,
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_poison_is_buried_with_its_bytes_and_innocents_are_issued(kind: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    before, after = requests(coupon, [11, 12])
    poison = message(UNREADABLE[kind](coupon), headers=(("odd", b"\xff\0"), ("none", None)))

    handle([before, poison, after])

    assert [answer(before), answer(after)] == [("SUCCESS", None)] * 2
    letter = DeadLetter.objects.get()
    stored = None if letter.payload is None else bytes(letter.payload)
    assert (stored, letter.offset, letter.consumer_group) == (poison.value, poison.offset, "issue")
    assert decode_headers(bytes(letter.headers)) == poison.headers
    assert letter.error_message


def test_a_dead_letter_is_told_on_the_dead_letter_topic_with_its_origin(make_coupon: MakeCoupon) -> None:
    poison = message(b"{", key=b"the key", headers=(("ce_type", b"coupon.issue.requested.v1"),))
    handle([poison])
    row = OutboxMessage.objects.get(topic="coupon-issue-request.DLT")
    assert (bytes(row.payload or b""), bytes(row.key or b"")) == (b"{", b"the key")
    headers = dict(decode_headers(bytes(row.headers or b"")))
    assert headers["ce_type"] == b"coupon.issue.requested.v1"
    assert headers["x-original-topic"] == b"coupon-issue-request"
    assert headers["x-original-partition"] == b"0"
    assert headers["x-original-offset"] == str(poison.offset).encode()
    assert headers["x-consumer-group"] == b"coupon-issue-consumer-group"
    assert headers["x-error-class"] == b"PoisonMessage"
    assert headers["x-error-message"]


@pytest.mark.parametrize("event_type", [b"coupon.issue.requested.v2", b"something.else.v1", b"\xff"])
def test_an_unknown_type_or_version_is_poison(event_type: bytes, make_coupon: MakeCoupon) -> None:
    received = message(request_body(make_coupon(), 1), headers=(("ce_type", event_type),))
    handle([received])
    assert DeadLetter.objects.count() == 1
    assert answer(received) == ("FAILED", "ERROR")


def test_the_request_of_a_dead_letter_ends_with_error_and_its_event(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    received = message(request_body(coupon, 5, source="MAGIC"))
    handle([received])
    row = IssueRequest.objects.get()
    assert (row.status, row.reason, row.user_id, row.coupon_id) == ("FAILED", "ERROR", 5, coupon.id)
    event = json.loads(bytes(OutboxMessage.objects.get(event_type="coupon.issue.failed.v1").payload or b""))
    assert (event["requestId"], event["reason"]) == (str(request_id(received)), "ERROR")


def test_a_request_whose_body_is_unreadable_is_found_by_its_event_id() -> None:
    event_id = UUID(int=7)
    handle([message(b"{", headers=(("ce_id", str(event_id).encode()),))])
    assert IssueRequest.objects.get().request_id == event_id


def test_a_request_that_has_its_answer_keeps_it_when_a_broken_copy_comes(make_coupon: MakeCoupon) -> None:
    received = message(request_body(make_coupon(), 1))
    handle([received])
    handle([message(b"{", headers=(("ce_id", str(request_id(received)).encode()),))])
    assert answer(received) == ("SUCCESS", None)
    assert DeadLetter.objects.count() == 1


@pytest.mark.parametrize("places", [[0], [499], [0, 250, 499]], ids=["first", "last", "three"])
def test_a_few_bad_messages_in_a_large_batch_are_found(places: list[int], make_coupon: MakeCoupon) -> None:
    batch = requests(make_coupon(total_quantity=1000), range(1, 501))
    for place in places:
        batch[place] = message(json.loads(batch[place].value or b"") | {"couponType": "SOMETHING_ELSE"})

    handle(batch)

    assert [answer(batch[place]) for place in places] == [("FAILED", "ERROR")] * len(places)
    assert UserCoupon.objects.count() == 500 - len(places)
    assert DeadLetter.objects.count() == len(places)
    won = list(UserCoupon.objects.order_by("id").values_list("user_id", flat=True))
    assert won == sorted(won)


def test_an_unknown_error_is_tried_three_times_and_then_only_its_message_is_buried(make_coupon: MakeCoupon) -> None:
    batch = requests(make_coupon(), [1, 2, 3])
    tries: list[int] = []

    def handle(tasks: Sequence[IssueTask]) -> None:
        tries.append(len(tasks))
        failing_for(2, RuntimeError("a fault"))(tasks)

    BatchHandler(replace(ISSUE, handle=handle)).handle(batch, StopFlag())

    assert tries == [3, 3, 3, 1, 2, 1, 1]
    assert [answer(item) for item in batch] == [("SUCCESS", None), ("FAILED", "ERROR"), ("SUCCESS", None)]
    assert DeadLetter.objects.get().error_class == "RuntimeError"


def test_a_message_alone_is_tried_three_times_and_no_more(make_coupon: MakeCoupon) -> None:
    (received,) = requests(make_coupon(), [2])
    tries: list[int] = []

    def handle(tasks: Sequence[IssueTask]) -> None:
        tries.append(len(tasks))
        raise RuntimeError("a fault")

    BatchHandler(replace(ISSUE, handle=handle)).handle([received], StopFlag())

    assert tries == [1, 1, 1]
    assert answer(received) == ("FAILED", "ERROR")


def test_a_batch_that_comes_again_buries_its_poison_once(make_coupon: MakeCoupon) -> None:
    batch = [*requests(make_coupon(), [1]), message(b"{")]
    handle(batch)
    handle(batch)
    assert DeadLetter.objects.count() == 1
    assert OutboxMessage.objects.filter(topic="coupon-issue-request.DLT").count() == 1


def test_a_fault_that_hits_everybody_pauses_instead_of_burying_everybody(make_coupon: MakeCoupon) -> None:
    batch = requests(make_coupon(total_quantity=100), [1] * 50)

    issuer = BatchHandler(replace(ISSUE, handle=failing_for(1, RuntimeError("a fault of ours"))))
    with pytest.raises(PoisonLimitExceeded, match="a fault of ours"):
        issuer.handle(batch, StopFlag())

    assert DeadLetter.objects.count() == batches.HANDLER_FAILURES_IN_A_ROW


def test_starting_again_goes_on_past_what_is_buried_already(make_coupon: MakeCoupon) -> None:
    batch = requests(make_coupon(total_quantity=100), [1] * 50)
    faulty = replace(ISSUE, handle=failing_for(1, RuntimeError("a fault of ours")))
    for buried in (20, 40):
        with pytest.raises(PoisonLimitExceeded):
            BatchHandler(faulty).handle(batch, StopFlag())
        assert DeadLetter.objects.count() == buried
    BatchHandler(faulty).handle(batch, StopFlag())
    assert DeadLetter.objects.count() == 50


def test_messages_that_are_bad_in_themselves_do_not_count_as_a_fault_of_ours(make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    handle([message(request_body(coupon, user_id, couponType="SOMETHING_ELSE")) for user_id in range(1, 31)])
    assert DeadLetter.objects.count() == 30


def test_garbage_without_end_pauses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BAD_MESSAGES_IN_A_ROW", 5)
    issuer = BatchHandler(ISSUE)
    issuer.handle([message(b"{") for _ in range(3)], StopFlag())
    with pytest.raises(PoisonLimitExceeded):
        issuer.handle([message(b"{") for _ in range(3)], StopFlag())
    assert DeadLetter.objects.count() == 3


def test_a_readable_message_ends_a_run_of_garbage(monkeypatch: pytest.MonkeyPatch, make_coupon: MakeCoupon) -> None:
    monkeypatch.setattr(batches, "BAD_MESSAGES_IN_A_ROW", 5)
    good = requests(make_coupon(), [1])
    BatchHandler(ISSUE).handle([*(message(b"{") for _ in range(5)), *good, message(b"{")], StopFlag())
    assert DeadLetter.objects.count() == 6


def test_a_database_that_is_away_buries_nobody(make_coupon: MakeCoupon) -> None:
    batch = requests(make_coupon(), [1])
    issuer = BatchHandler(replace(ISSUE, handle=failing_for(1, OperationalError("the server is away"))))
    with pytest.raises(OperationalError):
        issuer.handle(batch, StopFlag())
    assert DeadLetter.objects.count() == 0
    assert IssueRequest.objects.count() == 0


def test_a_dead_letter_that_cannot_be_written_holds_the_batch_back(
    make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OperationalError("disk full")

    batch = [*requests(make_coupon(), [1]), message(b"{")]
    with monkeypatch.context() as patched:
        patched.setattr(batches, "write_dead_letters", full)
        with pytest.raises(OperationalError):
            handle(batch)
    assert IssueRequest.objects.count() == 0
    handle(batch)
    assert answer(batch[0]) == ("SUCCESS", None)
    assert DeadLetter.objects.count() == 1


def test_a_dead_letter_that_fails_for_an_unknown_reason_costs_no_valid_message(
    make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("a fault")

    batch = [*requests(make_coupon(), [1]), message(b"{")]
    monkeypatch.setattr(batches, "write_dead_letters", fail)
    with pytest.raises(RuntimeError):
        handle(batch)
    assert answer(batch[0]) == ("SUCCESS", None)


def test_a_stop_between_two_tries_leaves_the_batch_for_the_next_consumer(make_coupon: MakeCoupon) -> None:
    batch = requests(make_coupon(), [1])
    stop = StopFlag()
    stop.request()
    issuer = BatchHandler(replace(ISSUE, handle=failing_for(1, RuntimeError("a fault"))))
    with pytest.raises(BatchInterrupted):
        issuer.handle(batch, stop)
    assert DeadLetter.objects.count() == 0
