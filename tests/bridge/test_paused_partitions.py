"""A consumer obeys the pauses and instructions of operators: nothing is handled, lost or reordered by a pause."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from django.db import OperationalError
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from common.throttling import CallPostponed
from devstack.processes import wait_until
from kafka_bridge.consuming import batch as batches
from kafka_bridge.consuming.consumer import GroupConsumer
from kafka_bridge.lag import HeldPartition
from kafka_bridge.models import DeadLetter, OperatorAction, PartitionInstruction
from kafka_bridge.operating.group_pauses import PauseTarget, find_target, pause, resume
from kafka_bridge.operating.partition_instructions import instruct, last_instructions
from kafka_bridge.operating.pause_watch import PauseWatch
from kafka_bridge.partitioner import partition_of
from kafka_bridge.registry import ConsumerGroup, prefixed
from tests.stub_app.consumer_groups import BOOKINGS, NOTICES, BookingRequest
from tests.stub_app.events import request
from tests.stub_app.routes import BOOKING_DECIDED, BOOKING_REQUESTED, REQUESTS, RESULTS, ROUTES
from tests.support.kafka import committed_offsets, produce
from tests.support.threads import in_another_session

from .scenes import KEY, OTHER_KEY, lag

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]

Action = PartitionInstruction.Action
OLGA: dict[str, Any] = {"actor": "olga", "reason": "wrong terms"}


@pytest.fixture(autouse=True)
def _retries_follow_at_once(settings: Settings) -> None:
    settings.CONSUMER_BACKOFF_SECONDS = 0.05


class Running:
    """A consumer in the background; ``watch`` is what its process's heartbeat would read once a second."""

    def __init__(self, *groups: ConsumerGroup) -> None:
        self.watch = PauseWatch([group.name for group in groups])
        self._consumer = GroupConsumer(*groups, pauses=self.watch)
        self._stop = StopFlag()
        self._run = in_another_session(lambda: self._consumer.run(self._stop))

    def states(self) -> dict[int, HeldPartition]:
        """What the consumer says of its partitions, by number, after a look at the pauses."""
        self.watch.read()
        return {held.partition: held for held in self._consumer.report(0).partitions}

    def when(self, number: int, state: str, *, at: int | None = None) -> HeldPartition:
        """Wait until a partition is in a state, and waits at an offset if given."""

        def look() -> bool:
            held = self.states().get(number)
            return held is not None and held.state == state and (at is None or held.waits_at == at)

        wait_until(look, 30, f"partition {number} is not {state}")
        return self.states()[number]

    def end(self) -> None:
        self._stop.request()
        self._run.result(30)


@contextmanager
def running(*groups: ConsumerGroup) -> Iterator[Running]:
    consumer = Running(*groups)
    try:
        yield consumer
    finally:
        consumer.end()


def partition(key: bytes, event_type: str = BOOKING_REQUESTED) -> int:
    return partition_of(key, ROUTES[event_type].partitions)


def target(key: bytes = KEY) -> PauseTarget:
    return find_target("bookings", REQUESTS, partition(key))


class Handler:
    """Handles bookings; ``fails`` says with which error a request fails."""

    def __init__(self, fails: Callable[[int], Exception | None] = lambda user_id: None) -> None:
        self.fails = fails
        self.handled: list[int] = []
        self.tries = 0

    def __call__(self, requests: Sequence[BookingRequest]) -> None:
        self.tries += 1
        for error in filter(None, (self.fails(one.user_id) for one in requests)):
            raise error
        self.handled += [one.user_id for one in requests]

    @property
    def group(self) -> ConsumerGroup:
        return replace(BOOKINGS, handle=self)


def requests(*user_ids: int) -> list[bytes]:
    return [request(user_id) for user_id in user_ids]


def answer() -> str:
    """Wait for the answer to the instruction."""
    row = PartitionInstruction.objects.filter(answered_at__isnull=False)
    wait_until(row.exists, 30, "the instruction is not obeyed")
    return row.get().answer


# Pauses


def test_nothing_is_handled_before_the_pauses_are_known() -> None:
    handler = Handler()
    produce(REQUESTS, requests(1, 2), key=KEY)
    stop, watch = StopFlag(), PauseWatch(["bookings"])
    consumer = GroupConsumer(handler.group, pauses=watch)
    run = in_another_session(lambda: consumer.run(stop))
    try:
        wait_until(lambda: bool(consumer.report(0).partitions), 30, "no partition is assigned")
        wait_until(lambda: {held.state for held in consumer.report(0).partitions} == {"paused"}, 30, "it does not wait")
        assert handler.handled == []
        watch.read()
        wait_until(lambda: handler.handled == [1, 2], 30, "it does not go on")
    finally:
        stop.request()
        run.result(30)


def test_a_paused_partition_stands_still_and_catches_up_in_order_while_the_others_go_on() -> None:
    handler = Handler()
    with running(handler.group) as consumer:
        produce(REQUESTS, requests(1), key=KEY)
        wait_until(lambda: consumer.states() and handler.handled == [1], 30, "nothing is handled")
        pause(target(), **OLGA)
        paused = consumer.when(partition(KEY), "paused")
        # Its lag is read by the sweep.
        assert (paused.lag, paused.lag_ms) == (None, None)
        produce(REQUESTS, requests(2, 3, 4), key=KEY)
        produce(REQUESTS, requests(5), key=OTHER_KEY)
        wait_until(lambda: 5 in handler.handled, 30, "the other partition does not go on")
        assert handler.handled == [1, 5]
        assert consumer.states()[partition(OTHER_KEY)].state == "ok"
        resume(target(), **OLGA)
        wait_until(lambda: consumer.states() and len(handler.handled) == 5, 30, "it does not catch up")
        assert handler.handled == [1, 5, 2, 3, 4]
    assert lag() == 0


def test_what_is_buffered_when_the_pause_comes_is_handled_after_it() -> None:
    handler = Handler(lambda user_id: OperationalError("away"))
    produce(REQUESTS, requests(1, 2, 3), key=KEY)
    with running(handler.group) as consumer:
        consumer.when(partition(KEY), "retrying", at=0)
        pause(PauseTarget("bookings"), **OLGA)
        consumer.when(partition(KEY), "paused")
        handler.fails, tries = (lambda user_id: None), handler.tries
        produce(REQUESTS, requests(4), key=KEY)
        produce(REQUESTS, requests(5), key=OTHER_KEY)
        consumer.when(partition(OTHER_KEY), "paused")
        assert (handler.handled, handler.tries) == ([], tries)
        resume(PauseTarget("bookings"), **OLGA)
        wait_until(lambda: consumer.states() and len(handler.handled) == 5, 30, "it does not go on")
    assert [user_id for user_id in handler.handled if user_id != 5] == [1, 2, 3, 4]
    assert lag() == 0


def test_a_consumer_that_ends_when_idle_does_not_wait_for_what_is_paused(caplog: pytest.LogCaptureFixture) -> None:
    handler = Handler()
    produce(REQUESTS, requests(1, 2), key=KEY)
    produce(REQUESTS, requests(3), key=OTHER_KEY)
    pause(target(), **OLGA)
    watch = PauseWatch(["bookings"])
    watch.read()
    GroupConsumer(handler.group, pauses=watch).run(StopFlag(), until_idle=True)
    assert handler.handled == [3]
    assert f"ends without the messages of paused: {prefixed(REQUESTS)}[{partition(KEY)}]" in caplog.text
    assert committed_offsets(BOOKINGS.group_id, REQUESTS)[partition(KEY)] == 0
    resume(target(), **OLGA)
    watch.read()
    GroupConsumer(handler.group, pauses=watch).run(StopFlag(), until_idle=True)
    assert handler.handled == [3, 1, 2]


def test_a_pause_interrupts_a_batch_that_calls_out_and_no_call_is_made_twice() -> None:
    called: list[bytes] = []
    watch = PauseWatch(["notices"])
    watch.read()

    def call(notices: Sequence[bytes], stop: StopFlag) -> list[Exception | None]:
        """Calls a provider that takes its time, and asks the flag before each call."""
        outcomes: list[Exception | None] = []
        for notice in notices:
            if len(called) == 2 and not OperatorAction.objects.exists():
                pause(PauseTarget("notices"), **OLGA)
                watch.read()
            if stop:
                outcomes.append(CallPostponed("stopped", seconds=0.1))
            else:
                called.append(notice)
                outcomes.append(None)
        return outcomes

    produce(RESULTS, [b"1", b"2", b"3", b"4"], key=KEY)
    stop, consumer = StopFlag(), GroupConsumer(replace(NOTICES, call=call), pauses=watch)
    run = in_another_session(lambda: consumer.run(stop))
    try:
        wait_until(lambda: {held.state for held in consumer.report(0).partitions} == {"paused"}, 30, "it is not paused")
        assert called == [b"1", b"2"]
        resume(PauseTarget("notices"), **OLGA)
        watch.read()
        wait_until(lambda: len(called) >= 4, 30, "it does not go on")
    finally:
        stop.request()
        run.result(30)
    assert called == [b"1", b"2", b"3", b"4"]


# Instructions


def at_the_limit(monkeypatch: pytest.MonkeyPatch, users: int = 9) -> Handler:
    """Requests that all fail in a way that no service explains; two in a row may become dead letters."""
    monkeypatch.setattr(batches, "HANDLER_FAILURES_IN_A_ROW", 2)
    produce(REQUESTS, requests(*range(1, users + 1)), key=KEY)
    return Handler(lambda user_id: KeyError("a fault of ours"))


def test_a_partition_at_its_limit_is_tried_again_at_once(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    # After the only attempt it waits for ten seconds.
    settings.CONSUMER_MAX_ATTEMPTS, settings.CONSUMER_BACKOFF_SECONDS = 1, 10
    handler = at_the_limit(monkeypatch)
    with running(handler.group) as consumer:
        held = consumer.when(partition(KEY), "poison-limit", at=0)
        assert "messages in a row fail, the last with KeyError" in held.error
        handler.fails = lambda user_id: None
        instruct(target(), Action.RETRY, **OLGA)
        wait_until(lambda: consumer.states()[partition(KEY)].state == "ok", 5, "it is not tried at once")
    assert "is tried again" in answer()
    assert lag() == 0
    assert DeadLetter.objects.count() == 2


def test_a_partition_at_its_limit_may_write_as_many_dead_letters_again(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = at_the_limit(monkeypatch)
    with running(handler.group) as consumer:
        consumer.when(partition(KEY), "poison-limit")
        assert DeadLetter.objects.count() == 2
        instruct(target(), Action.CONTINUE, **OLGA)
        wait_until(lambda: consumer.states() and DeadLetter.objects.count() == 4, 30, "no more dead letters")
        consumer.when(partition(KEY), "poison-limit")
        assert DeadLetter.objects.count() == 4
    assert "is tried again" in answer()


def test_the_message_at_the_limit_is_dead_lettered_by_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = at_the_limit(monkeypatch, users=3)
    handler.fails = lambda user_id: KeyError("a fault of ours") if user_id != 3 else OperationalError("the server")
    with running(handler.group) as consumer:
        consumer.when(partition(KEY), "retrying", at=0)
        for offset in range(3):
            consumer.when(partition(KEY), "retrying", at=offset)
            PartitionInstruction.objects.all().delete()
            instruct(target(), Action.DEAD_LETTER, offset=offset, **OLGA)
            wait_until(
                lambda: consumer.states() and PartitionInstruction.objects.exclude(answer="").exists(), 30, "not obeyed"
            )
            assert answer().startswith("dead-lettered: ")
        consumer.when(partition(KEY), "ok")
    assert list(DeadLetter.objects.order_by("offset").values_list("offset", "error_class")) == [
        (0, "KeyError"), (1, "KeyError"), (2, "OperationalError"),
    ]  # fmt: skip
    assert lag() == 0
    action = OperatorAction.objects.latest("id")
    assert (action.action, action.subject, action.actor, action.reason, action.after) == (
        "partition.dead_letter", str(target()), "olga", "wrong terms", {"offset": 2},
    )  # fmt: skip


def test_only_the_message_that_fails_by_itself_is_dead_lettered() -> None:
    handler = Handler(lambda user_id: OperationalError("locked") if user_id == 2 else None)
    produce(REQUESTS, requests(1, 2, 3), key=KEY)
    with running(handler.group) as consumer:
        consumer.when(partition(KEY), "retrying", at=0)
        instruct(target(), Action.DEAD_LETTER, offset=0, **OLGA)
        consumer.when(partition(KEY), "retrying", at=1)
        assert answer().startswith("handled, it succeeds by itself")
        assert not DeadLetter.objects.exists()
        instruct(target(), Action.DEAD_LETTER, offset=1, **OLGA)
        consumer.when(partition(KEY), "ok")
        wait_until(lambda: consumer.states() and handler.handled == [1, 3], 30, "it does not go on")
    letter = DeadLetter.objects.get()
    assert (letter.offset, letter.error_class, letter.error_message) == (1, "OperationalError", "locked")
    assert answer().startswith("dead-lettered: ")
    assert lag() == 0


def test_a_partition_that_has_moved_on_dead_letters_nothing() -> None:
    handler = Handler(lambda user_id: OperationalError("locked") if user_id == 2 else None)
    produce(REQUESTS, requests(2), key=KEY)
    with running(handler.group) as consumer:
        consumer.when(partition(KEY), "retrying", at=0)
        instruct(target(), Action.DEAD_LETTER, offset=7, **OLGA)
        wait_until(
            lambda: consumer.states() and PartitionInstruction.objects.exclude(answer="").exists(), 30, "not obeyed"
        )
        assert answer() == "nothing was done: the partition has moved on, to offset 0"
        handler.fails = lambda user_id: None
        consumer.when(partition(KEY), "ok")
        instruct(target(), Action.DEAD_LETTER, offset=0, **OLGA)
        wait_until(
            lambda: consumer.states() and PartitionInstruction.objects.exclude(answer="").exists(), 30, "not obeyed"
        )
    assert answer() == "nothing was done: the partition does not wait any more"
    assert not DeadLetter.objects.exists()


@pytest.mark.parametrize(
    ("action", "offset", "expected"),
    [
        (Action.DEAD_LETTER, 0, "dead-lettered: "),
        (Action.RETRY, None, "obeyed: "),
        (Action.CONTINUE, None, "obeyed: "),
    ],
)
def test_an_instruction_given_without_a_consumer_waits_for_the_first_try_of_the_next(
    action: Action, offset: int | None, expected: str
) -> None:
    handler = Handler(lambda user_id: OperationalError("locked"))
    produce(REQUESTS, requests(2), key=KEY)
    instruct(target(), action, offset=offset, **OLGA)
    with running(handler.group) as consumer:
        wait_until(
            lambda: consumer.states() and PartitionInstruction.objects.exclude(answer="").exists(), 30, "not obeyed"
        )
    assert answer().startswith(expected)
    assert handler.tries
    assert DeadLetter.objects.count() == (action == Action.DEAD_LETTER)


@pytest.mark.parametrize(("action", "offset"), [(Action.DEAD_LETTER, 0), (Action.RETRY, None)])
def test_an_instruction_given_without_a_consumer_is_answered_when_the_message_is_handled_after_all(
    action: Action, offset: int | None
) -> None:
    handler = Handler()
    produce(REQUESTS, requests(2), key=KEY)
    instruct(target(), action, offset=offset, **OLGA)
    with running(handler.group) as consumer:
        wait_until(
            lambda: consumer.states() and PartitionInstruction.objects.exclude(answer="").exists(), 30, "not answered"
        )
        assert handler.handled == [2]
    assert answer() == "nothing was done: the partition does not wait any more"
    assert not DeadLetter.objects.exists()


def test_of_two_instructions_on_a_shared_id_the_second_waits_for_the_next_message(settings: Settings) -> None:
    settings.KAFKA_GROUPS = settings.KAFKA_GROUPS | dict.fromkeys(("bookings", "notices"), BOOKINGS.group_id)
    handler = Handler(lambda user_id: OperationalError("locked") if user_id < 3 else None)
    produce(REQUESTS, requests(1, 2, 3), key=KEY)
    beside = replace(BOOKINGS, name="notices", inbox=True, handle=lambda values: None)
    with running(replace(handler.group, inbox=True), beside) as consumer:
        consumer.when(partition(KEY), "retrying", at=0)
        instruct(target(), Action.DEAD_LETTER, offset=0, **OLGA)
        instruct(target()._replace(name="notices"), Action.RETRY, **OLGA)
        consumer.when(partition(KEY), "retrying", at=1)
        unanswered = PartitionInstruction.objects.filter(answer="")
        wait_until(lambda: consumer.states() and not unanswered.exists(), 30, "not obeyed")
    answers = {row.consumer_group: row.answer for row in last_instructions().values()}
    assert answers["bookings"].startswith("dead-lettered for bookings: ")
    assert answers["notices"].startswith("obeyed: ")


def test_a_paused_partition_obeys_no_instruction() -> None:
    handler = Handler(lambda user_id: OperationalError("locked"))
    produce(REQUESTS, requests(2), key=KEY)
    with running(handler.group) as consumer:
        consumer.when(partition(KEY), "retrying", at=0)
        pause(target(), **OLGA)
        consumer.when(partition(KEY), "paused")
        instruct(target(), Action.DEAD_LETTER, offset=0, **OLGA)
        wait_until(
            lambda: consumer.states() and PartitionInstruction.objects.exclude(answer="").exists(), 30, "not obeyed"
        )
    assert answer() == "nothing was done: the partition is paused"
    assert not DeadLetter.objects.exists()


def test_a_postponed_message_is_dead_lettered_and_no_other_call_is_repeated() -> None:
    called: list[bytes] = []

    def call(notices: Sequence[bytes], stop: StopFlag) -> list[Exception | None]:
        postponed = CallPostponed("the provider asks to slow down", seconds=0.1)
        called.extend(notices)
        return [postponed if notice in (b"2", b"3") else None for notice in notices]

    number = partition(KEY, BOOKING_DECIDED)
    produce(RESULTS, [b"1", b"2", b"3", b"4"], key=KEY)
    with running(replace(NOTICES, call=call)) as consumer:
        where = find_target("notices", RESULTS, number)
        for offset in (1, 2):
            consumer.when(number, "retrying", at=offset)
            instruct(where, Action.DEAD_LETTER, offset=offset, **OLGA)
            wait_until(
                lambda expected=offset: (  # type: ignore[misc]
                    consumer.states() and DeadLetter.objects.filter(offset=expected).exists()
                ),
                30,
                "not dead-lettered",
            )
        consumer.when(number, "ok")
        wait_until(lambda: committed_offsets(NOTICES.group_id, RESULTS)[number] == 4, 30, "it is not committed")
    assert (called.count(b"1"), called.count(b"4")) == (1, 1)
    assert set(DeadLetter.objects.values_list("error_class", flat=True)) == {"CallPostponed"}
    assert [row.answer[:14] for row in last_instructions().values()] == ["dead-lettered:"]
