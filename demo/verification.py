"""Compares the answers that the load client got with PostgreSQL. The codes are those of ``check_invariants``."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from django.db import connection

from demo.load_client import Answer, Ask

_SHOWN = 5
_CHUNK = 1000

_DECIDED = "SELECT request_id FROM coupons_issuerequest WHERE request_id = ANY(%s::uuid[])"
_MISMATCHED = """
    SELECT promise.request_id, promise.user_id, promise.coupon_id, row.user_id, row.coupon_id
    FROM unnest(%s::uuid[], %s::bigint[], %s::bigint[]) AS promise (request_id, user_id, coupon_id)
    LEFT JOIN coupons_issuerequest AS row ON row.request_id = promise.request_id
    WHERE (row.user_id, row.coupon_id) IS DISTINCT FROM (promise.user_id, promise.coupon_id)
"""
_ISSUED = """
    SELECT coupon_id, count(*), count(DISTINCT user_id) FROM coupons_usercoupon
    WHERE coupon_id = ANY(%s) AND status <> 'REVOKED' GROUP BY coupon_id
"""


class Undecided:
    """The accepted requests that have no result yet, looked up by primary key, a thousand at a time."""

    def __init__(self, request_ids: Iterable[UUID]) -> None:
        self._request_ids = deque(request_ids)

    def __len__(self) -> int:
        return len(self._request_ids)

    def look(self) -> int:
        """Remove requests that have a result and return the number of remaining ones.

        Checks the oldest first and stops at the first thousand that is not completely decided.
        """
        while self._request_ids:
            chunk = [self._request_ids.popleft() for _ in range(min(_CHUNK, len(self._request_ids)))]
            with connection.cursor() as cursor:
                cursor.execute(_DECIDED, [[str(request_id) for request_id in chunk]])
                decided = {request_id for (request_id,) in cursor.fetchall()}
            if pending := [request_id for request_id in chunk if request_id not in decided]:
                self._request_ids.extendleft(reversed(pending))
                break
        return len(self._request_ids)


def violations(asks: Sequence[Ask], answers: Sequence[Answer], stock: Mapping[int, int]) -> list[str]:
    """Return a line per failed check, empty when all hold.

    ``asks`` are all requests sent, ``answers`` all answers and ``stock`` the units by coupon id. All coupons must have
    been new, and every accepted request decided.
    """
    return [*_unanswered(asks, answers), *_mismatched(answers), *_miscounted(asks, stock)]


def _unanswered(asks: Sequence[Ask], answers: Sequence[Answer]) -> list[str]:
    lines = []
    if len(answers) != len(asks):
        lines.append(f"I1 {len(asks) - len(answers)} of {len(asks)} asks got no answer")
    refused = Counter(answer.status for answer in answers if answer.request_id is None)
    lines += [f"I1 {count} asks were answered {status}" for status, count in refused.items()]
    shared = Counter(answer.request_id for answer in answers if answer.request_id)
    lines += [f"I1 {count} asks got request {request_id}" for request_id, count in shared.items() if count > 1]
    return lines


def _mismatched(answers: Sequence[Answer]) -> list[str]:
    """Accepted requests without a result, or with another user's or coupon's. The primary key excludes duplicates."""
    accepted = [answer for answer in answers if answer.request_id]
    with connection.cursor() as cursor:
        cursor.execute(
            _MISMATCHED,
            [
                [str(answer.request_id) for answer in accepted],
                [answer.ask.user_id for answer in accepted],
                [answer.ask.coupon_id for answer in accepted],
            ],
        )
        rows = cursor.fetchmany(_SHOWN)
        more = cursor.rowcount - len(rows)
    lines = [
        f"I1 request {request_id} of user {user} for coupon {coupon} has no result"
        if found_user is None
        else f"I1 request {request_id} of user {user} for coupon {coupon} has that of {found_user} and {found_coupon}"
        for request_id, user, coupon, found_user, found_coupon in rows
    ]
    return [*lines, f"I1 and {more} more"] if more > 0 else lines


def _miscounted(asks: Sequence[Ask], stock: Mapping[int, int]) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(_ISSUED, [list(stock)])
        issued = {coupon_id: (count, users) for coupon_id, count, users in cursor.fetchall()}
    lines = []
    for coupon_id, total in stock.items():
        count, users = issued.get(coupon_id, (0, 0))
        expected = min(total, len({ask.user_id for ask in asks if ask.coupon_id == coupon_id}))
        if count > total:
            lines.append(f"I2 coupon {coupon_id}: {count} issued of {total}")
        if count > users:
            lines.append(f"I3 coupon {coupon_id}: {count} issued to {users} users")
        if count < expected:
            lines.append(f"I8 coupon {coupon_id}: {count} issued, expected {expected}")
    return lines
