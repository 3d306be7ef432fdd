"""The gates held against PostgreSQL: who is counted there must have the coupon or a request under way.

What makes it right during traffic is the order of the reads. Whoever is in the gate is looked up in PostgreSQL after
the gate was read, since a request is in the gate before it is in PostgreSQL; the other way round, everybody let in
between the two reads would look leaked. Whoever is missing is the opposite: PostgreSQL first, then the gate, then
PostgreSQL once more, since a request leaves the gate after it has ended in PostgreSQL.

Nobody's clock decides about a request: it ends by its terminal row, and whoever inserts its outbox row later finds it
decided.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from django.db import connection, transaction

from common.postgres import arrays
from common.processes.lifecycle import StopFlag

from ..admission import FinishedRequest
from ..admission.gate import store
from ..admission.gate.load import read_ended
from ..admission.gate.releasing import release, revoke
from ..admission.gate.store import GateEntry, KeyScan
from ..issuance.fail_orphaned import OrphanedRequest, fail_orphaned_requests
from .findings import (
    GATE_EXTRA,
    GATE_FOREIGN,
    GATE_HALF_LOADED,
    GATE_LEAKED,
    GATE_MISSING,
    GATE_SEQUENCE,
    GATE_UNTOLD,
    Findings,
)

# How often a gate is compared member by member: while the numbers do not add up, and in any case.
_DOUBTED_SECONDS = 60.0
_COMPARED_SECONDS = 600.0
_MOST_OLD = 50_000
_SCAN_CALLS = 50
_CHUNK = 5000
_EARLY_MS = 1000

_COUPONS = """
    SELECT c.id, c.coupon_type, c.admission = 'gate', c.issued + count(r.request_id)
    FROM coupons_coupon c LEFT JOIN coupons_reservation r ON r.coupon_id = c.id
    GROUP BY c.id ORDER BY c.id
"""
# A row that came after the end of its request stands for nothing.
_UNDECIDED = "NOT EXISTS (SELECT FROM coupons_issuerequest r WHERE r.request_id = coupons_reservation.request_id)"
_RESERVED = f"""
    SELECT user_id, request_id FROM coupons_reservation
    WHERE coupon_id = %s AND user_id = ANY(%s::bigint[]) AND {_UNDECIDED}
"""
_HOLDERS = """
    SELECT user_id, status = 'REVOKED' FROM coupons_usercoupon WHERE user_id = ANY(%s::bigint[]) AND coupon_id = %s
"""
_REQUESTS = """
    SELECT asked.id, o.event_id IS NOT NULL, r.request_id IS NOT NULL, r.reason,
           extract(epoch FROM statement_timestamp() - r.processed_at)::float
    FROM unnest(%s::uuid[]) AS asked (id)
         LEFT JOIN kafka_bridge_outboxmessage o ON o.event_id = asked.id
         LEFT JOIN coupons_issuerequest r ON r.request_id = asked.id
"""
_TAKERS = f"""
    SELECT user_id, NULL::uuid, NULL::float FROM coupons_usercoupon WHERE coupon_id = %s AND status <> 'REVOKED'
    UNION ALL
    SELECT user_id, request_id, extract(epoch FROM statement_timestamp() - created_at)::float
    FROM coupons_reservation WHERE coupon_id = %s AND {_UNDECIDED}
"""
_REVOKED = "SELECT user_id FROM coupons_usercoupon WHERE coupon_id = %s AND status = 'REVOKED'"


class _Coupon(NamedTuple):
    """``taken``: pieces issued, and requests under way."""

    id: int
    coupon_type: str
    by_gate: bool
    taken: int


class _Request(NamedTuple):
    """What PostgreSQL knows of a request; ``decided_for`` in seconds."""

    in_outbox: bool
    decided: bool
    reason: str | None
    decided_for: float | None

    @property
    def has_coupon(self) -> bool:
        """Whether its user got the coupon, or had it."""
        return self.decided and self.reason in (None, "ALREADY_ISSUED")


class _Known(NamedTuple):
    """What PostgreSQL knows of some users of a coupon: their requests under way, and whether a piece was revoked."""

    under_way: Mapping[int, UUID]
    revoked: Mapping[int, bool]
    requests: Mapping[UUID, _Request]

    def has_something(self, user_id: int) -> bool:
        return user_id in self.under_way or self.revoked.get(user_id) is False


class GateCheck:
    """Compares all gates. ``patience``: seconds for which a request may be between gate and outbox."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._compared_at: dict[int, float] = defaultdict(lambda: float("-inf"))
        self._scan = KeyScan()

    def check(self, findings: Findings, stop: StopFlag, *, repair: bool) -> set[int]:
        """Look at every gate, and at each member of those that are due; returns the ids of these."""
        coupons = self._coupons()
        compared = set()
        for coupon in coupons:
            if stop:
                break
            if not store.is_whole(coupon.id, drop=repair):
                findings.add(GATE_HALF_LOADED, f"coupon {coupon.coupon_type}")
            elif self._is_due(coupon):
                self._compare(coupon, findings, stop, repair=repair)
                compared.add(coupon.id)
            elif old := store.open_for(coupon.id, self._patience, limit=_MOST_OLD):
                self._judge(coupon, old, findings, repair=repair)
        return compared

    def check_again(self, coupon_ids: Collection[int], findings: Findings, stop: StopFlag) -> None:
        """Look once more at gates that were mended."""
        for coupon in self._coupons():
            if not store.is_whole(coupon.id, drop=False):
                findings.add(GATE_HALF_LOADED, f"coupon {coupon.coupon_type}")
            elif coupon.id in coupon_ids:
                self._compare(coupon, findings, stop, repair=False)
            elif old := store.open_for(coupon.id, self._patience, limit=_MOST_OLD):
                self._judge(coupon, old, findings, repair=False)

    def check_keys(self, findings: Findings, *, whole: bool, repair: bool) -> None:
        """Look for keys under the gate's name that are not the gate's: all of them, or some more than last time."""
        for names in self._scan.step(None if whole else _SCAN_CALLS):
            # After the keys: a gate comes after its coupon.
            with connection.cursor() as cursor:
                cursor.execute("SELECT id FROM coupons_coupon")
                coupon_ids = {coupon_id for (coupon_id,) in cursor.fetchall()}
            if foreign := store.foreign_keys(names, coupon_ids):
                for name in foreign:
                    findings.add(GATE_FOREIGN, f"key {name!r}")
                if repair:
                    store.remove_keys(foreign)

    def _coupons(self) -> list[_Coupon]:
        """Those with a gate, or what is left of one."""
        with connection.cursor() as cursor:
            cursor.execute(_COUPONS)
            coupons = [_Coupon(*row) for row in cursor.fetchall()]
        there = set(store.existing([coupon.id for coupon in coupons]))
        return [coupon for coupon in coupons if coupon.id in there]

    def _is_due(self, coupon: _Coupon) -> bool:
        age = time.monotonic() - self._compared_at[coupon.id]
        if age > _COMPARED_SECONDS:
            return True
        return age > _DOUBTED_SECONDS and store.number_of_takers(coupon.id) != coupon.taken

    def _compare(self, coupon: _Coupon, findings: Findings, stop: StopFlag, *, repair: bool) -> None:
        last_place = 0
        for users in store.fields(coupon.id):
            if stop:
                # What is mended so far is mended; the rest is for the next process.
                return
            last_place = max(last_place, self._judge(coupon, users, findings, repair=repair))
        self._check_sequence(coupon, last_place, findings, repair=repair)
        self._check_open(coupon, findings, repair=repair)
        self._check_revoked(coupon, findings, repair=repair)
        if coupon.by_gate:
            self._check_missing(coupon, findings, stop, repair=repair)
        self._compared_at[coupon.id] = time.monotonic()

    def _judge(self, coupon: _Coupon, users: Sequence[bytes], findings: Findings, *, repair: bool) -> int:
        """Hold entries against PostgreSQL; returns the last place in line that is theirs."""
        members, foreign, _ = store.look(coupon.id, users)
        known = _known(coupon.id, members)
        leaked = [one for one in members if self._is_leaked(one, known)]
        untold = [one for one in members if self._is_untold(one, known)]
        # Once more: what was settled meanwhile is not extra.
        extra = {one.user_id: one for one in members if self._is_extra(one, known)}
        extra_now = [one for one in store.look(coupon.id, list(extra))[0] if one.entry == extra[one.user_id].entry]
        for one in leaked:
            findings.add(GATE_LEAKED, f"coupon {coupon.coupon_type}, user {one.user_id}, request {one.request_id}")
        for one in untold:
            findings.add(GATE_UNTOLD, f"coupon {coupon.coupon_type}, user {one.user_id}, request {one.request_id}")
        for one in extra_now:
            findings.add(GATE_EXTRA, f"coupon {coupon.coupon_type}, user {one.user_id}")
        for field, entry in foreign.items():
            findings.add(GATE_FOREIGN, f"coupon {coupon.coupon_type}, {field!r}: {entry!r}")
        # It would never grow old.
        early = [one.user_id for one in members if (one.age_ms or 0) < -_EARLY_MS]
        for user_id in early:
            findings.add(GATE_FOREIGN, f"coupon {coupon.coupon_type}, user {user_id} was let in at a time to come")
        if repair:
            if leaked:
                fail_orphaned_requests(
                    coupon_id=coupon.id,
                    abandoned=[
                        OrphanedRequest(one.request_id, one.user_id, one.age_seconds)
                        for one in leaked
                        if one.request_id is not None
                    ],
                )
            store.open_from_now(coupon.id, early)
            release(_ended(coupon.id, untold, known))
            if barred := [one.user_id for one in extra_now if one.user_id in known.revoked]:
                revoke(coupon.id, barred)
            store.remove(coupon.id, [(one.user_id, one.entry) for one in extra_now] + list(foreign.items()))
        return max((one.place for one in members), default=0)

    def _is_leaked(self, one: GateEntry, known: _Known) -> bool:
        if one.request_id is None or (one.user_id in known.revoked and one.age_ms is None):
            return False
        request = known.requests[one.request_id]
        if request.in_outbox or request.decided:
            return False
        # Entry and time are one change, so what was never open is no request on its way.
        return one.age_seconds is None or one.age_seconds > self._patience

    def _is_untold(self, one: GateEntry, known: _Known) -> bool:
        if one.request_id is None:
            return False
        request = known.requests[one.request_id]
        # The gate hears of it after the commit, which comes after that time.
        if not request.decided or (request.decided_for or 0.0) <= self._patience:
            return False
        if request.has_coupon:
            return one.age_ms is not None and one.user_id in known.revoked
        return True

    def _is_extra(self, one: GateEntry, known: _Known) -> bool:
        """Whether an entry stands for nothing, whatever becomes of the request that it names."""
        if known.has_something(one.user_id):
            return False
        if one.user_id in known.revoked or one.request_id is None:
            return True
        # Somebody else's request, for its own user would have the coupon by now.
        request = known.requests[one.request_id]
        return request.has_coupon and (request.decided_for or 0.0) > self._patience

    def _check_sequence(self, coupon: _Coupon, last_place: int, findings: Findings, *, repair: bool) -> None:
        # Read after the places, it is not less than any.
        sequence = store.sequence(coupon.id)
        if sequence is None or sequence < last_place:
            findings.add(GATE_SEQUENCE, f"coupon {coupon.coupon_type}: {sequence}, the last place is {last_place}")
            if repair:
                store.set_sequence(coupon.id, max(last_place, store.number_of_takers(coupon.id)))

    def _check_open(self, coupon: _Coupon, findings: Findings, *, repair: bool) -> None:
        for users in store.open_fields(coupon.id):
            # Whoever was settled meanwhile is neither open nor in.
            absent = store.look(coupon.id, users)[2]
            still = set(store.still_open(coupon.id, absent))
            for user in still:
                findings.add(GATE_FOREIGN, f"coupon {coupon.coupon_type}, {user!r} is open and not in")
            if repair and still:
                store.close(coupon.id, list(still))

    def _check_revoked(self, coupon: _Coupon, findings: Findings, *, repair: bool) -> None:
        for users in store.revoked(coupon.id):
            ids = {user: int(user) for user in users if store.is_user(user)}
            barred = _revoked_of(coupon.id, ids.values())
            wrong = [user for user in users if user not in ids or not barred.get(ids[user])]
            for user in wrong:
                findings.add(GATE_EXTRA, f"coupon {coupon.coupon_type}, {user!r} is barred")
            if repair and wrong:
                store.unrevoke(coupon.id, wrong)

    def _check_missing(self, coupon: _Coupon, findings: Findings, stop: StopFlag, *, repair: bool) -> None:
        for takers in _chunks(_TAKERS, [coupon.id, coupon.id]):
            if stop:
                return
            absent = {int(user) for user in store.look(coupon.id, [user for user, *_ in takers])[2]}
            missing = _still(coupon.id, [one for one in takers if one[0] in absent])
            for user_id, _, _ in missing:
                findings.add(GATE_MISSING, f"coupon {coupon.coupon_type}, user {user_id}")
            if repair and missing:
                store.add(coupon.id, missing)
                # One that ended while it was added was told to a gate that did not know it.
                release(read_ended([request_id for _, request_id, _ in missing if request_id is not None]))
        for barred in _chunks(_REVOKED, [coupon.id]):
            missing_ids = store.not_revoked(coupon.id, [user_id for (user_id,) in barred])
            for user_id in missing_ids:
                findings.add(GATE_MISSING, f"coupon {coupon.coupon_type}, user {user_id}, to be barred")
            if repair and missing_ids:
                revoke(coupon.id, missing_ids)


def _known(coupon_id: int, members: Sequence[GateEntry]) -> _Known:
    users = arrays.numbers([one.user_id for one in members])
    request_ids = arrays.uuids({one.request_id for one in members if one.request_id is not None})
    # In the order of a request's life, so that it is found in one of them.
    with connection.cursor() as cursor:
        cursor.execute(_RESERVED, [coupon_id, users])
        under_way = dict(cursor.fetchall())
        revoked = _revoked_of(coupon_id, [one.user_id for one in members])
        cursor.execute(_REQUESTS, [request_ids])
        return _Known(under_way, revoked, {row[0]: _Request(*row[1:]) for row in cursor.fetchall()})


def _revoked_of(coupon_id: int, user_ids: Collection[int]) -> dict[int, bool]:
    """Whether the coupon was revoked, of those of the users who have or had it."""
    with connection.cursor() as cursor:
        cursor.execute(_HOLDERS, [arrays.numbers(user_ids), coupon_id])
        return dict(cursor.fetchall())


_Taker = tuple[int, UUID | None, float | None]


def _still(coupon_id: int, takers: Sequence[_Taker]) -> list[_Taker]:
    """Those who have, or wait, even now."""
    if not takers:
        return []
    users = arrays.numbers([user for user, _, _ in takers])
    with connection.cursor() as cursor:
        cursor.execute(_RESERVED, [coupon_id, users])
        under_way = dict(cursor.fetchall())
        revoked = _revoked_of(coupon_id, [user for user, _, _ in takers])
    now: dict[int, _Taker] = {}
    for user_id, request_id, age in takers:
        if request_id is not None and under_way.get(user_id) == request_id:
            now[user_id] = (user_id, request_id, age)
        elif revoked.get(user_id) is False and user_id not in under_way:
            now[user_id] = (user_id, None, None)
    return list(now.values())


def _ended(coupon_id: int, members: Sequence[GateEntry], known: _Known) -> list[FinishedRequest]:
    return [
        FinishedRequest(one.request_id, coupon_id, one.user_id, known.requests[one.request_id].reason)
        for one in members
        if one.request_id is not None
    ]


def _chunks(query: str, values: Sequence[int]) -> Iterator[list[tuple]]:  # type: ignore[type-arg]
    with transaction.atomic(), connection.chunked_cursor() as cursor:
        cursor.execute(query, values)
        while rows := cursor.fetchmany(_CHUNK):
            yield rows
