"""Compare the gates with PostgreSQL: each user in a gate must have the coupon or an undecided request.

The order of the reads keeps the comparison correct under traffic. Gate entries are read before PostgreSQL, because a
request enters the gate before it enters PostgreSQL; in the opposite order, every request admitted between the two reads
would look leaked. Missing entries are searched in the opposite order: PostgreSQL, the gate, then PostgreSQL again,
because a request leaves the gate after its terminal row is committed.

No clock decides a request. A leaked request finishes by its terminal row, and a later insert of its outbox row finds it
decided.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from django.db import connection

from common.chunks import row_chunks
from common.postgres import arrays
from common.processes.lifecycle import StopFlag
from common.redis_client import KeyScan

from ..admission import FinishedRequest
from ..admission.gate.key_scan import KEYS, remove_keys, unexpected_keys
from ..admission.gate.load import read_finished
from ..admission.gate.releasing import release
from ..admission.gate.store import GateEntry, GateStore, existing, is_user
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

# Seconds between two full comparisons of a gate: while its count differs from PostgreSQL, and otherwise.
_SUSPECT_COMPARE_SECONDS = 60.0
_COMPARE_SECONDS = 600.0
_MAX_OLD_ENTRIES = 50_000
_SCAN_CALLS = 50
_CHUNK = 5000
_EARLY_MS = 1000

_COUPONS = """
    SELECT c.id, c.coupon_type, c.admission = 'gate', c.issued + count(r.request_id)
    FROM coupons_coupon c LEFT JOIN coupons_reservation r ON r.coupon_id = c.id
    GROUP BY c.id ORDER BY c.id
"""
# A reservation inserted after its request was decided counts for nothing.
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
_HOLDERS_OF_UNITS = f"""
    SELECT user_id, NULL::uuid, NULL::float FROM coupons_usercoupon WHERE coupon_id = %s AND status <> 'REVOKED'
    UNION ALL
    SELECT user_id, request_id, extract(epoch FROM statement_timestamp() - created_at)::float
    FROM coupons_reservation WHERE coupon_id = %s AND {_UNDECIDED}
"""
_REVOKED = "SELECT user_id FROM coupons_usercoupon WHERE coupon_id = %s AND status = 'REVOKED'"


class _Coupon(NamedTuple):
    """A coupon with a gate. ``taken``: units issued plus undecided requests."""

    id: int
    coupon_type: str
    by_gate: bool
    taken: int

    def __str__(self) -> str:
        return f"coupon {self.coupon_type}"

    @property
    def gate(self) -> GateStore:
        return GateStore(self.id)


class KnownRequest(NamedTuple):
    """A request in PostgreSQL. ``decided_for``: seconds since its decision."""

    in_outbox: bool
    decided: bool
    reason: str | None
    decided_for: float | None

    @property
    def has_coupon(self) -> bool:
        """Whether the request is decided and its user has the coupon: SUCCESS or ALREADY_ISSUED."""
        return self.decided and self.reason in (None, "ALREADY_ISSUED")


class Known(NamedTuple):
    """The rows of some users of a coupon in PostgreSQL.

    ``undecided``: request id by user id. ``revoked``: whether the user's coupon was revoked, by user id; without users
    who never had the coupon. ``requests``: by request id.
    """

    undecided: Mapping[int, UUID]
    revoked: Mapping[int, bool]
    requests: Mapping[UUID, KnownRequest]

    def holds_unit(self, user_id: int) -> bool:
        return user_id in self.undecided or self.revoked.get(user_id) is False


class GateCheck:
    """Compares all gates. ``patience``: seconds that a request may take from the gate to its commit in the outbox."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._compared_at: dict[int, float] = defaultdict(lambda: float("-inf"))
        self._scan = KeyScan(KEYS)

    def check(
        self, findings: Findings, stop: StopFlag, *, repair: bool, again: Collection[int] | None = None
    ) -> set[int]:
        """Check all gates; return the ids of the coupons whose gate was due and compared entry by entry.

        Of a gate that is not due, only the oldest pending entries are checked. ``again``: the coupons whose gate is due
        in the check after a repair, whenever it was compared last. Raises RedisError.
        """
        compared = set()
        for coupon in self._coupons():
            if stop:
                break
            if not coupon.gate.is_complete(drop=repair):
                findings.add(GATE_HALF_LOADED, str(coupon))
            elif self._is_due(coupon) if again is None else coupon.id in again:
                self._compare(coupon, findings, stop, repair=repair)
                compared.add(coupon.id)
            elif old := coupon.gate.pending_for(self._patience, limit=_MAX_OLD_ENTRIES):
                self._check_entries(coupon, old, findings, repair=repair)
        return compared

    def check_keys(self, findings: Findings, *, whole: bool, repair: bool) -> None:
        """Find keys with the prefix ``gate:`` that belong to no gate. Raises RedisError.

        ``whole``: scan all of Redis; otherwise continue the last scan by 50 calls.
        """
        for names in self._scan.step(None if whole else _SCAN_CALLS):
            # After the keys were read: a coupon exists before its gate.
            with connection.cursor() as cursor:
                cursor.execute("SELECT id FROM coupons_coupon")
                coupon_ids = {coupon_id for (coupon_id,) in cursor.fetchall()}
            if foreign := unexpected_keys(names, coupon_ids):
                findings.add(GATE_FOREIGN, *(f"key {name!r}" for name in foreign))
                if repair:
                    remove_keys(foreign)

    def _coupons(self) -> list[_Coupon]:
        """Return the coupons that have a gate or a part of it."""
        with connection.cursor() as cursor:
            cursor.execute(_COUPONS)
            coupons = [_Coupon(*row) for row in cursor.fetchall()]
        with_gate = {gate.coupon_id for gate in existing([coupon.id for coupon in coupons])}
        return [coupon for coupon in coupons if coupon.id in with_gate]

    def _is_due(self, coupon: _Coupon) -> bool:
        age = time.monotonic() - self._compared_at[coupon.id]
        if age > _COMPARE_SECONDS:
            return True
        return age > _SUSPECT_COMPARE_SECONDS and coupon.gate.number_of_holders() != coupon.taken

    def _compare(self, coupon: _Coupon, findings: Findings, stop: StopFlag, *, repair: bool) -> None:
        last_sequence = 0
        for users in coupon.gate.fields():
            if stop:
                # The repairs made so far are complete; the next process continues.
                return
            last_sequence = max(last_sequence, self._check_entries(coupon, users, findings, repair=repair))
        self._check_sequence(coupon, last_sequence, findings, repair=repair)
        self._check_pending(coupon, findings, repair=repair)
        self._check_revoked(coupon, findings, repair=repair)
        if coupon.by_gate:
            self._check_missing(coupon, findings, stop, repair=repair)
        self._compared_at[coupon.id] = time.monotonic()

    def _check_entries(self, coupon: _Coupon, users: Sequence[bytes], findings: Findings, *, repair: bool) -> int:
        """Compare entries of a gate with PostgreSQL; return the highest sequence among them."""
        entries, foreign, _ = coupon.gate.read(users)
        known = read_known(coupon.id, entries)
        leaked = [entry for entry in entries if self._is_leaked(entry, known)]
        stale = [entry for entry in entries if self._is_stale(entry, known)]
        # Read twice: an entry that changed in between is in use.
        suspects = {entry.user_id: entry for entry in entries if self._is_unexpected(entry, known)}
        reread = coupon.gate.read(list(suspects)).entries
        unexpected = [entry for entry in reread if entry.entry == suspects[entry.user_id].entry]
        findings.add(GATE_LEAKED, *(f"{coupon}, user {entry.user_id}, request {entry.request_id}" for entry in leaked))
        findings.add(GATE_UNTOLD, *(f"{coupon}, user {entry.user_id}, request {entry.request_id}" for entry in stale))
        findings.add(GATE_EXTRA, *(f"{coupon}, user {entry.user_id}" for entry in unexpected))
        findings.add(GATE_FOREIGN, *(f"{coupon}, {field!r}: {content!r}" for field, content in foreign.items()))
        # With an admission time in the future an entry would never exceed the patience.
        future = [entry.user_id for entry in entries if (entry.age_ms or 0) < -_EARLY_MS]
        findings.add(
            GATE_FOREIGN, *(f"{coupon}, user {user_id} has an admission time in the future" for user_id in future)
        )
        if repair:
            if leaked:
                fail_orphaned_requests(
                    coupon_id=coupon.id,
                    orphaned=[
                        OrphanedRequest(entry.request_id, entry.user_id, entry.age_seconds)
                        for entry in leaked
                        if entry.request_id is not None
                    ],
                )
            coupon.gate.pending_from_now(future)
            release(_finished(coupon.id, stale, known))
            if barred := [entry.user_id for entry in unexpected if entry.user_id in known.revoked]:
                coupon.gate.revoke(barred)
            coupon.gate.remove([(entry.user_id, entry.entry) for entry in unexpected] + list(foreign.items()))
        return max((entry.sequence for entry in entries), default=0)

    def _is_leaked(self, entry: GateEntry, known: Known) -> bool:
        if entry.request_id is None or (entry.user_id in known.revoked and entry.age_ms is None):
            return False
        request = known.requests[entry.request_id]
        if request.in_outbox or request.decided:
            return False
        # Entry and admission time are written in one change, so an entry that was never pending
        # is no request under way.
        return entry.age_seconds is None or entry.age_seconds > self._patience

    def _is_stale(self, entry: GateEntry, known: Known) -> bool:
        if entry.request_id is None:
            return False
        request = known.requests[entry.request_id]
        # The gate is updated after the commit, and the commit comes after the decision time.
        if not request.decided or (request.decided_for or 0.0) <= self._patience:
            return False
        if request.has_coupon:
            return entry.age_ms is not None and entry.user_id in known.revoked
        return True

    def _is_unexpected(self, entry: GateEntry, known: Known) -> bool:
        """Whether the entry counts for no unit, whatever the result of the request that it names."""
        if known.holds_unit(entry.user_id):
            return False
        if entry.user_id in known.revoked or entry.request_id is None:
            return True
        # A successful request whose user has no coupon belongs to another user.
        request = known.requests[entry.request_id]
        return request.has_coupon and (request.decided_for or 0.0) > self._patience

    def _check_sequence(self, coupon: _Coupon, last_sequence: int, findings: Findings, *, repair: bool) -> None:
        # Read after the entries, so it is at least the highest sequence among them.
        sequence = coupon.gate.sequence()
        if sequence is None or sequence < last_sequence:
            findings.add(GATE_SEQUENCE, f"{coupon}: {sequence}, the highest sequence in use is {last_sequence}")
            if repair:
                coupon.gate.set_sequence(max(last_sequence, coupon.gate.number_of_holders()))

    def _check_pending(self, coupon: _Coupon, findings: Findings, *, repair: bool) -> None:
        for users in coupon.gate.pending_members():
            # A request that finished in between has neither a pending mark nor an entry.
            absent = coupon.gate.read(users).absent
            pending = set(coupon.gate.still_pending(absent))
            findings.add(GATE_FOREIGN, *(f"{coupon}, {user!r} is pending without an entry" for user in pending))
            if repair and pending:
                coupon.gate.remove_pending(list(pending))

    def _check_revoked(self, coupon: _Coupon, findings: Findings, *, repair: bool) -> None:
        for users in coupon.gate.revoked():
            ids = {user: int(user) for user in users if is_user(user)}
            barred = _revoked_of(coupon.id, ids.values())
            wrong = [user for user in users if user not in ids or not barred.get(ids[user])]
            findings.add(GATE_EXTRA, *(f"{coupon}, {user!r} is in the revoked set" for user in wrong))
            if repair and wrong:
                coupon.gate.unrevoke(wrong)

    def _check_missing(self, coupon: _Coupon, findings: Findings, stop: StopFlag, *, repair: bool) -> None:
        for holders in row_chunks(_HOLDERS_OF_UNITS, [coupon.id, coupon.id], _CHUNK):
            if stop:
                return
            absent = {int(user) for user in coupon.gate.read([user for user, *_ in holders]).absent}
            missing = _current_holders(coupon.id, [holder for holder in holders if holder[0] in absent])
            findings.add(GATE_MISSING, *(f"{coupon}, user {user_id}" for user_id, _, _ in missing))
            if repair and missing:
                coupon.gate.add(missing)
                # A request that finished before it was added was released in a gate without its entry: release it
                # again.
                release(read_finished([request_id for _, request_id, _ in missing if request_id is not None]))
        for barred in row_chunks(_REVOKED, [coupon.id], _CHUNK):
            missing_ids = coupon.gate.not_revoked([user_id for (user_id,) in barred])
            findings.add(GATE_MISSING, *(f"{coupon}, user {user_id}, in the revoked set" for user_id in missing_ids))
            if repair and missing_ids:
                coupon.gate.revoke(missing_ids)


def read_known(coupon_id: int, entries: Sequence[GateEntry]) -> Known:
    """Read what PostgreSQL has about the users and requests of ``entries``."""
    users = arrays.numbers([entry.user_id for entry in entries])
    request_ids = arrays.uuids({entry.request_id for entry in entries if entry.request_id is not None})
    # In the order in which a request moves through the tables, so that one of the reads finds it.
    with connection.cursor() as cursor:
        cursor.execute(_RESERVED, [coupon_id, users])
        undecided = dict(cursor.fetchall())
        revoked = _revoked_of(coupon_id, [entry.user_id for entry in entries])
        cursor.execute(_REQUESTS, [request_ids])
        return Known(undecided, revoked, {row[0]: KnownRequest(*row[1:]) for row in cursor.fetchall()})


def _revoked_of(coupon_id: int, user_ids: Collection[int]) -> dict[int, bool]:
    """Return by user id whether the user's coupon was revoked, without users who never had the coupon."""
    with connection.cursor() as cursor:
        cursor.execute(_HOLDERS, [arrays.numbers(user_ids), coupon_id])
        return dict(cursor.fetchall())


# (user id, id of the undecided request or None for an issued coupon, age of the request in seconds)
_Holder = tuple[int, UUID | None, float | None]


def _current_holders(coupon_id: int, holders: Sequence[_Holder]) -> list[_Holder]:
    """Read again which of ``holders`` have the coupon or an undecided request."""
    if not holders:
        return []
    users = arrays.numbers([user for user, _, _ in holders])
    with connection.cursor() as cursor:
        cursor.execute(_RESERVED, [coupon_id, users])
        undecided = dict(cursor.fetchall())
        revoked = _revoked_of(coupon_id, [user for user, _, _ in holders])
    current: dict[int, _Holder] = {}
    for user_id, request_id, age in holders:
        if request_id is not None and undecided.get(user_id) == request_id:
            current[user_id] = (user_id, request_id, age)
        elif revoked.get(user_id) is False and user_id not in undecided:
            current[user_id] = (user_id, None, None)
    return list(current.values())


def _finished(coupon_id: int, entries: Sequence[GateEntry], known: Known) -> list[FinishedRequest]:
    return [
        FinishedRequest(entry.request_id, coupon_id, entry.user_id, known.requests[entry.request_id].reason)
        for entry in entries
        if entry.request_id is not None
    ]
