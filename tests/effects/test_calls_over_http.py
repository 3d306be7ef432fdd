"""Calls to a service outside: tried again under one key, and judged together."""

import logging
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from common import http_calls
from common.http_calls import PARALLEL, CallFailed, CallRefused, Endpoint, HttpCall
from common.processes.lifecycle import StopFlag
from common.processes.outages import ServiceUnavailable
from devstack import wait_until
from tests.effects.cast import TRACEPARENT
from tests.support.provider import DRIP_BODY, DRIP_HEADERS, ENDLESS, HANG, HANG_UP, Answer, Call, Provider

SECRET = "s3cret"


def endpoint_of(provider: Provider, key: str = SECRET) -> Endpoint:
    headers = {"Authorization": f"Bearer {key}"}
    return Endpoint("the service", provider.url, headers=headers, fix_hint="look at SERVICE_KEY")


@pytest.fixture
def endpoint(provider: Provider) -> Endpoint:
    return endpoint_of(provider)


def some_calls(count: int) -> list[HttpCall]:
    return [HttpCall(uuid7(), b'{"n":%d}' % number) for number in range(count)]


def failing_for(*keys: UUID, status: int = 500) -> Any:
    names = {str(key) for key in keys}
    return lambda call: status if call.key in names else 200


def test_a_call_carries_its_body_its_key_and_the_trace(provider: Provider, endpoint: Endpoint) -> None:
    key = uuid7()
    assert endpoint.post_all([HttpCall(key, b'{"a":1}', TRACEPARENT), HttpCall(uuid7(), b"{}")], StopFlag()) == [
        None,
        None,
    ]
    (call,) = (call for call in provider.calls if call.key == str(key))
    assert (call.path, call.body) == ("/told", b'{"a":1}')
    assert call.headers["content-type"] == "application/json"
    assert call.headers["authorization"] == f"Bearer {SECRET}"
    assert call.headers["traceparent"] == TRACEPARENT
    (other,) = (call for call in provider.calls if call.key != str(key))
    assert "traceparent" not in other.headers


@pytest.mark.parametrize("trouble", [500, 502, 503, 504, 408, 425, HANG])
def test_what_may_pass_is_tried_again_under_the_same_key(
    trouble: Answer, provider: Provider, endpoint: Endpoint
) -> None:
    provider.answer = lambda call: trouble if call.number < 3 else 201
    (call,) = some_calls(1)
    assert endpoint.post_all([call], StopFlag()) == [None]
    assert [seen.key for seen in provider.calls] == [str(call.idempotency_key)] * 3


def test_an_answer_that_is_lost_has_its_effect_once(provider: Provider, endpoint: Endpoint) -> None:
    provider.answer = lambda call: HANG if call.number == 1 else 200
    (call,) = some_calls(1)
    endpoint.post_all([call], StopFlag())
    assert len(provider.calls) == 2
    assert list(provider.effects) == [str(call.idempotency_key)]


def test_a_service_that_asks_for_time_gets_it(provider: Provider, endpoint: Endpoint) -> None:
    provider.answer = lambda call: (500, {"Retry-After": "1"}) if call.number == 1 else 200
    started_at = time.monotonic()
    assert endpoint.post_all(some_calls(1), StopFlag()) == [None]
    assert time.monotonic() - started_at >= 1


@pytest.mark.parametrize("retry_after", ["Wed, 21 Oct 2099 07:28:00 GMT", "99999", "-1", "²"])
def test_a_service_that_asks_for_too_much_time_gets_some(
    retry_after: str, provider: Provider, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_calls, "LONGEST_PAUSE", 0.2)
    provider.answer = lambda call: (500, {"Retry-After": retry_after}) if call.number == 1 else 200
    started_at = time.monotonic()
    assert endpoint.post_all(some_calls(1), StopFlag()) == [None]
    assert time.monotonic() - started_at < 5


@pytest.mark.parametrize("status", [400, 409, 410, 422])
def test_what_is_refused_for_good_is_not_tried_again(status: int, provider: Provider, endpoint: Endpoint) -> None:
    calls = some_calls(3)
    provider.answer = failing_for(calls[1].idempotency_key, status=status)
    outcomes = endpoint.post_all(calls, StopFlag())
    assert [type(outcome) for outcome in outcomes] == [type(None), CallRefused, type(None)]
    assert provider.tries(calls[1].idempotency_key) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 401, 403, 404, 405, 407])
def test_a_wrong_address_or_key_is_nobodys_message_and_names_what_to_mend(
    status: int, provider: Provider, endpoint: Endpoint
) -> None:
    provider.answer = lambda call: (status, {"Location": provider.url})
    with pytest.raises(ServiceUnavailable, match=f"answered {status}; look at SERVICE_KEY"):
        endpoint.post_all(some_calls(2), StopFlag())
    assert len(provider.calls) == 2


@pytest.mark.parametrize("trouble", [500, 503, HANG])
def test_a_service_that_answers_nobody_is_away(trouble: Answer, provider: Provider, endpoint: Endpoint) -> None:
    provider.answer = lambda call: trouble
    with pytest.raises(ServiceUnavailable, match="nothing gets through to the service"):
        endpoint.post_all(some_calls(5), StopFlag())
    assert len(provider.calls) == 15


def test_a_service_that_takes_no_connection_is_away(closed_provider: Provider) -> None:
    endpoint = endpoint_of(closed_provider)
    with pytest.raises(ServiceUnavailable, match="no connection"):
        endpoint.post_all(some_calls(5), StopFlag())
    closed_provider.up()
    assert endpoint.post_all(some_calls(5), StopFlag()) == [None] * 5


@pytest.mark.parametrize("address", ["https://127.0.0.1:{port}/", "http://unknown.invalid/"], ids=["no TLS", "no name"])
def test_an_address_that_cannot_be_spoken_to_is_a_service_that_is_away(address: str, provider: Provider) -> None:
    url = address.format(port=urlsplit(provider.url).port)
    endpoint = Endpoint("the service", url, fix_hint="look at SERVICE_URL")
    with pytest.raises(ServiceUnavailable, match=r"no connection \(ConnectError\)|no answer within"):
        endpoint.post_all(some_calls(2), StopFlag())
    assert not provider.calls


def test_of_a_large_batch_only_a_handful_waits_for_a_service_that_hangs(provider: Provider, endpoint: Endpoint) -> None:
    provider.answer = lambda call: HANG
    with pytest.raises(ServiceUnavailable):
        endpoint.post_all(some_calls(200), StopFlag())
    assert len(provider.calls) <= 3 * PARALLEL


def test_one_that_fails_while_others_get_through_is_told_from_a_service_that_is_away(
    provider: Provider, endpoint: Endpoint
) -> None:
    calls = some_calls(20)
    provider.answer = failing_for(calls[7].idempotency_key)
    outcomes = endpoint.post_all(calls, StopFlag())
    assert [place for place, outcome in enumerate(outcomes) if isinstance(outcome, CallFailed)] == [7]
    assert outcomes.count(None) == 19
    # Alone now, and still the exception that it was among the others.
    (alone,) = endpoint.post_all([calls[7]], StopFlag())
    assert isinstance(alone, CallFailed)
    assert provider.tries(calls[7].idempotency_key) == 6


def test_a_service_that_goes_away_in_the_middle_is_away_for_all_that_are_left(
    provider: Provider, endpoint: Endpoint
) -> None:
    provider.answer = lambda call: 200 if call.number <= 30 else 503
    calls = some_calls(60)
    outcomes = endpoint.post_all(calls, StopFlag())
    left = [call for call, outcome in zip(calls, outcomes, strict=True) if outcome is not None]
    assert len(left) == 30
    with pytest.raises(ServiceUnavailable):
        endpoint.post_all(left, StopFlag())
    provider.answer = lambda call: 200
    assert endpoint.post_all(left, StopFlag()) == [None] * 30


def test_a_call_of_another_thread_that_gets_through_shows_that_the_service_is_there(
    provider: Provider, endpoint: Endpoint
) -> None:
    (bad,) = some_calls(1)

    def answer(call: Call) -> Answer:
        if call.key != str(bad.idempotency_key):
            return 200
        if provider.tries(bad.idempotency_key) == 3:
            wait_until(lambda: bool(provider.effects), 5, "no other call is made")
        return 500

    provider.answer = answer
    with ThreadPoolExecutor(1) as pool:
        failing = pool.submit(endpoint.post_all, [bad], StopFlag())
        wait_until(lambda: bool(provider.calls), 5, "no call is made")
        assert endpoint.post_all(some_calls(1), StopFlag()) == [None]
        (outcome,) = failing.result(10)
    assert isinstance(outcome, CallFailed)


def test_a_stop_while_the_service_hangs_is_over_after_one_timeout(
    provider: Provider, endpoint: Endpoint, settings: Any
) -> None:
    settings.HTTP_TIMEOUT_SECONDS = 1.0
    provider.answer = lambda call: HANG
    stop = StopFlag()
    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(endpoint.post_all, some_calls(100), stop)
        wait_until(lambda: len(provider.calls) >= PARALLEL, 5, "no call is made")
        stop.request()
        stopped_at = time.monotonic()
        outcomes = calling.result(10)
    assert time.monotonic() - stopped_at < 2.5
    assert len(provider.calls) == PARALLEL
    assert {str(outcome) for outcome in outcomes if isinstance(outcome, CallFailed)} == {"stopped"}
    assert None not in outcomes


def test_a_stop_during_a_pause_ends_it(provider: Provider, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_calls, "PAUSES", (60.0, 60.0))
    provider.answer = lambda call: 503
    stop = StopFlag()
    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(endpoint.post_all, some_calls(1), stop)
        wait_until(lambda: len(provider.calls) == 1, 5, "no call is made")
        stop.request()
        (outcome,) = calling.result(5)
    assert isinstance(outcome, CallFailed)


def test_calls_for_which_no_time_is_left_come_back_undone(
    provider: Provider, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_calls, "BUDGET", 0.3)

    def slow(call: Call) -> Answer:
        time.sleep(0.1)
        return 200

    provider.answer = slow
    outcomes = endpoint.post_all(some_calls(200), StopFlag())
    done = outcomes.count(None)
    assert 0 < done < 200
    assert len(provider.calls) == done
    assert {str(outcome) for outcome in outcomes if outcome} == {"not called: there was no time left"}


def test_an_answer_without_end_holds_nobody_up(provider: Provider, endpoint: Endpoint) -> None:
    provider.answer = lambda call: ENDLESS
    assert endpoint.post_all(some_calls(3), StopFlag()) == [None] * 3


def test_an_answer_that_drips_counts_as_none_once_its_time_is_over(provider: Provider, endpoint: Endpoint) -> None:
    provider.answer = lambda call: DRIP_HEADERS if call.number == 1 else 200
    started_at = time.monotonic()
    assert endpoint.post_all(some_calls(1), StopFlag()) == [None]
    assert time.monotonic() - started_at < 8
    assert len(provider.calls) > 1


def test_the_status_tells_all_though_the_body_never_ends(provider: Provider, endpoint: Endpoint) -> None:
    provider.answer = lambda call: DRIP_BODY
    started_at = time.monotonic()
    assert endpoint.post_all(some_calls(2), StopFlag()) == [None, None]
    assert len(provider.calls) == 2
    assert time.monotonic() - started_at < 8


def test_a_connection_that_the_service_closes_without_a_word_costs_one_more_try(
    provider: Provider, endpoint: Endpoint
) -> None:
    provider.answer = lambda call: HANG_UP if call.number == 2 else 200
    for _ in range(3):
        assert endpoint.post_all(some_calls(1), StopFlag()) == [None]
    assert len(provider.calls) == 4


def test_calls_begin_in_their_order(provider: Provider, endpoint: Endpoint) -> None:
    calls = some_calls(100)
    assert endpoint.post_all(calls, StopFlag()) == [None] * 100
    places = {str(call.idempotency_key): place for place, call in enumerate(calls)}
    # A call begins when one of those under way has ended: none overtakes more than those.
    assert all(places[call.key] - place < PARALLEL for place, call in enumerate(provider.calls))


def test_calls_of_one_line_keep_their_order_over_an_outage(provider: Provider, endpoint: Endpoint) -> None:
    calls = [call._replace(ordering_key=1 if place in (0, 20) else None) for place, call in enumerate(some_calls(21))]
    provider.answer = lambda call: 503
    # Only the first of the line is among those that are tried.
    with pytest.raises(ServiceUnavailable):
        endpoint.post_all(calls, StopFlag())
    assert provider.tries(calls[20].idempotency_key) == 0
    provider.answer = lambda call: 200
    assert endpoint.post_all(calls, StopFlag()) == [None] * 21
    reached = list(provider.effects)
    assert reached.index(str(calls[0].idempotency_key)) < reached.index(str(calls[20].idempotency_key))


def test_calls_that_never_get_through_hide_nobody_behind_them(provider: Provider, endpoint: Endpoint) -> None:
    calls = some_calls(3 * PARALLEL)
    provider.answer = failing_for(*(call.idempotency_key for call in calls[:PARALLEL]))
    # As many as are under way at once, and at the head: once that looks like a service that is away.
    with pytest.raises(ServiceUnavailable):
        endpoint.post_all(calls, StopFlag())
    outcomes = endpoint.post_all(calls, StopFlag())
    assert [isinstance(outcome, CallFailed) for outcome in outcomes[:PARALLEL]] == [True] * PARALLEL
    assert outcomes[PARALLEL:] == [None] * (2 * PARALLEL)


@pytest.mark.parametrize("key", [SECRET, f"{SECRET}\n", f"{SECRET}키"], ids=["sound", "a line break", "Korean"])
@pytest.mark.parametrize("answer", [500, 401, 400])
def test_neither_texts_nor_logs_tell_the_key_or_a_body(
    key: str, answer: int, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    provider.answer = lambda call: answer
    call = HttpCall(uuid7(), b'{"text":"private"}')
    try:
        said = str(endpoint_of(provider, key).post_all([call], StopFlag()))
    except ServiceUnavailable as error:
        said = "".join(traceback.format_exception(error))
    said += caplog.text
    assert SECRET not in said
    assert "private" not in said
    assert provider.url not in said
