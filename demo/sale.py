"""One flash sale from an empty table to the verdict."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import msgspec

from coupons.controls import coupon_create
from coupons.models import Coupon, IssueRequest
from couponsite.auth.tokens import issue_access_token
from demo.load_client import Answer, Ask, Connection, Crowd, encode_request
from demo.verification import Undecided, violations

_TOKEN_LIFETIME = timedelta(hours=1)
_ANSWER_SECONDS = 300.0
_RESULT_SECONDS = 120.0
_POLL_SECONDS = 0.05
_WARM_UP = 20


@dataclass(frozen=True, slots=True)
class Size:
    """Size of a sale: ``quantity`` is the stock of each coupon, and every user requests coupons of one type only."""

    requests: int
    users: int
    coupons: int
    quantity: int


@dataclass(slots=True)
class Outcome:
    """Result of a sale. Durations in seconds; ``complaints`` has a line per failed check."""

    coupons: Sequence[Coupon]
    answers: list[Answer] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)
    answered_in: float = 0.0
    decided_in: float = 0.0
    sampled: int = 0
    complaints: list[str] = field(default_factory=list)


class Result(msgspec.Struct, frozen=True, rename="camel"):
    """The result of a request, as both the API and the table give it."""

    status: str
    reason: str | None
    user_coupon_id: int | None


Progress = Callable[[int], None]


def _no_progress(done: int) -> None:
    pass


class FlashSale:
    """Creates the coupons, sends the requests, waits for the results and compares answers with results."""

    def __init__(self, size: Size, port: int) -> None:
        self._port = port
        self._coupons = _make_coupons(size)
        self._asks = make_asks(size.requests, size.users, self._coupons)
        self._tokens = bearer_tokens(ask.user_id for ask in self._asks)

    def run(
        self,
        sending: AbstractContextManager[Progress],
        deciding: AbstractContextManager[Progress],
        *,
        sample: int,
    ) -> Outcome:
        """Run the sale. ``sending`` and ``deciding`` yield functions that get the number of answers and results.

        ``sample`` statuses are read through the API and compared with PostgreSQL.
        """
        outcome = Outcome(self._coupons)
        # Wait until the first requests have results: before that relay and issuers are starting, which is not measured.
        self._send(outcome, self._asks[:_WARM_UP], _no_progress)
        self._await_results(outcome, _no_progress)
        started = time.monotonic()
        with sending as progress:
            self._send(outcome, self._asks[_WARM_UP:], progress)
        outcome.answered_in = time.monotonic() - started
        with deciding as progress:
            self._await_results(outcome, progress)
        outcome.decided_in = time.monotonic() - started
        outcome.complaints += violations(
            self._asks, outcome.answers, {coupon.id: coupon.total_quantity for coupon in self._coupons}
        )
        asyncio.run(self._compare_statuses(outcome, sample))
        return outcome

    def _send(self, outcome: Outcome, asks: Sequence[Ask], progress: Progress) -> None:
        before = len(outcome.answers)
        crowd = Crowd(self._port, self._tokens, on_answer=lambda answers: progress(before + answers))
        try:
            asyncio.run(asyncio.wait_for(crowd.ask_all(asks), _ANSWER_SECONDS))
        except TimeoutError:
            outcome.complaints.append(f"I1 not every request was answered within {_ANSWER_SECONDS:.0f} s")
        outcome.answers += crowd.answers
        outcome.retries += crowd.retries

    def _await_results(self, outcome: Outcome, progress: Progress) -> None:
        undecided = Undecided(answer.request_id for answer in outcome.answers if answer.request_id)
        accepted = len(undecided)
        deadline = time.monotonic() + _RESULT_SECONDS
        while pending := undecided.look():
            progress(accepted - pending)
            if time.monotonic() > deadline:
                outcome.complaints.append(f"I1 {pending} requests without a result after {_RESULT_SECONDS:.0f} s")
                return
            time.sleep(_POLL_SECONDS)
        progress(accepted)

    async def _compare_statuses(self, outcome: Outcome, sample: int) -> None:
        accepted = {answer.request_id: answer.ask for answer in outcome.answers if answer.request_id}
        chosen = random.sample(sorted(accepted), min(sample, len(accepted)))
        stored = await asyncio.to_thread(_stored_results, chosen)
        connection = Connection(self._port)
        for request_id in chosen:
            answered = await self._api_result(connection, request_id, accepted[request_id].user_id)
            if answered != stored.get(request_id):
                outcome.complaints.append(
                    f"I1 request {request_id}: the API says {answered}, PostgreSQL {stored.get(request_id)}"
                )
        connection.close()
        outcome.sampled = len(chosen)

    async def _api_result(self, connection: Connection, request_id: UUID, user_id: int) -> Result | None:
        message = encode_request(
            "GET", f"/api/v1/issue-requests/{request_id}", self._port, {"authorization": self._tokens[user_id]}
        )
        status, body, _ = await connection.insist(message, Counter())
        return msgspec.json.decode(body, type=Result) if status == 200 else None


def _make_coupons(size: Size) -> list[Coupon]:
    # Every run has new coupon types: on a database of an earlier run the old coupons are sold out.
    run = secrets.token_hex(3).upper()
    return [
        coupon_create(
            actor="demo",
            coupon_type=f"FLASH_{run}_{number}",
            name=f"{10 * number} % off",
            total_quantity=size.quantity,
            discount_type=Coupon.DiscountType.PERCENT,
            discount_value=min(10 * number, 100),
        )[0]
        for number in range(1, size.coupons + 1)
    ]


def make_asks(requests: int, users: int, coupons: Sequence[Coupon]) -> list[Ask]:
    """Return asks in random order; user ``u`` asks for coupon ``u % len(coupons)``, repeatedly if requests > users."""
    asks = []
    for number in range(requests):
        user_id = number % users + 1
        coupon = coupons[user_id % len(coupons)]
        asks.append(Ask(secrets.token_hex(16), user_id, coupon.id, coupon.coupon_type, endpoint=number))
    random.shuffle(asks)
    return asks


def bearer_tokens(user_ids: Iterable[int]) -> dict[int, str]:
    """Return the value of the Authorization header by user id."""
    return {user_id: f"Bearer {issue_access_token(user_id, lifetime=_TOKEN_LIFETIME)}" for user_id in set(user_ids)}


def _stored_results(request_ids: Sequence[UUID]) -> dict[UUID, Result]:
    rows = IssueRequest.objects.filter(request_id__in=request_ids)
    return {row.request_id: Result(row.status, row.reason, row.user_coupon_id) for row in rows}
