"""The gate of a coupon in Redis: admission, loading, and the reads and repairs of the reconciler."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple
from uuid import UUID

from redis.lock import Lock

from common.bigint import MAX_BIGINT
from common.chunks import chunks
from common.redis_client import redis_connection

from ... import metrics
from ...errors import AlreadyIssued, SoldOut
from ..base import AdmissionRequest, FinishedRequest
from .redis_keys import (
    COMPLETE,
    LEFTOVER_SECONDS,
    LIFETIME_SECONDS,
    MOST_PER_CALL,
    PARTIAL,
    SENTINEL,
    Keys,
    run,
)

logger = logging.getLogger(__name__)

# After a loader was killed, no other can load the gate for this long.
_LOCK_SECONDS = 10.0
_ADMITTED, _DUPLICATE, _SOLD_OUT = 1, 3, 4
_REFUSALS = {_DUPLICATE: AlreadyIssued, _SOLD_OUT: SoldOut}
_ENTRY = re.compile(rb"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}):(\d{1,15})")
_USER = re.compile(rb"[1-9]\d{0,18}")
_CHUNK = 1000
_LARGEST_TIME = 2**53

# User id; request id and age in seconds of an undecided request; whether the coupon was revoked. Plain tuples, since
# building a million objects of any class takes seconds.
HolderRow = tuple[int, UUID | None, float | None, bool]


class GateEntry(NamedTuple):
    """A user's entry. ``request_id`` None: a unit that the gate did not reserve; ``age_ms`` None: not pending."""

    user_id: int
    entry: bytes
    request_id: UUID | None
    sequence: int
    age_ms: int | None

    @property
    def age_seconds(self) -> float | None:
        return None if self.age_ms is None else self.age_ms / 1000


class GateRead(NamedTuple):
    """What was read of users. ``unexpected``: values that are no entry, by field; ``absent``: users without a value."""

    entries: list[GateEntry]
    unexpected: dict[bytes, bytes]
    absent: list[bytes]


class GateStore:
    """The gate of one coupon. Every method raises RedisError.

    Calls are chunked, so that a gate with a million entries does not block other clients of Redis.
    """

    def __init__(self, coupon_id: int) -> None:
        self.coupon_id = coupon_id
        self._base = f"gate:{{{coupon_id}}}"
        self.keys = self._keys("")

    @property
    def lock_key(self) -> str:
        """The key of the lock that a loader of the gate holds."""
        return f"{self._base}:lock"

    def admit(self, candidates: Sequence[AdmissionRequest]) -> bool:
        """Set the outcomes of at most ``MOST_PER_CALL`` candidates; False, without a change, if no gate is loaded."""
        # All totals are at most a second old; the last candidate's is the newest.
        args: list[object] = [candidates[-1].total_quantity, LIFETIME_SECONDS]
        for candidate in candidates:
            args += (candidate.user_id, str(candidate.request_id))
        reply = run("admit.lua", self.keys, args)
        if reply is None:
            return False
        for candidate, code, sequence in zip(candidates, reply[::2], reply[1::2], strict=True):
            candidate.refusal = _REFUSALS.get(code)
            candidate.sequence = sequence or None
            candidate.newly_reserved = code == _ADMITTED
        return True

    def finish(self, finished: Sequence[FinishedRequest]) -> None:
        """Confirm or release reservations by the results of their requests; idempotent.

        Drops a gate that has admitted more than the stock: the next request loads it again.
        """
        for start in range(0, len(finished), MOST_PER_CALL):
            args: list[object] = []
            for request in finished[start : start + MOST_PER_CALL]:
                args += (request.user_id, str(request.request_id), request.reason or "")
            released, dropped = run("finish.lua", self.keys, args)
            metrics.GATE_RELEASED.inc(released)
            if dropped:
                metrics.GATE_DROPPED.inc()
                logger.error(
                    "the gate of coupon %s admitted more than the stock: it is dropped and the next request loads it",
                    self.coupon_id,
                )

    def revoke(self, user_ids: Sequence[int]) -> None:
        """Remove users whose units returned to the stock and do not admit them again."""
        run("revoke.lua", self.keys, [LEFTOVER_SECONDS, *user_ids])

    def lock(self) -> Lock:
        """Return the lock of the gate's loader, not acquired."""
        return Lock(redis_connection(), self.lock_key, timeout=_LOCK_SECONDS, thread_local=False)

    def is_loaded(self) -> bool:
        return bool(run("check.lua", self.keys, [0]) == COMPLETE)

    def stage(self, token: str, holders: Sequence[HolderRow]) -> None:
        """Write a chunk of holders under the staging keys of the loader whose lock has ``token``."""
        staging = self._staging_keys(token)
        now = _now_ms()
        issued = [str(user_id) for user_id, request_id, _, revoked in holders if request_id is None and not revoked]
        reserved = {user_id: f"{request_id}:0" for user_id, request_id, _, _ in holders if request_id is not None}
        # Converted by age, since PostgreSQL's and Redis's clocks differ.
        pending_since = {user_id: int(now - age * 1000) for user_id, _, age, _ in holders if age is not None}
        revoked = [user_id for user_id, _, _, revoked in holders if revoked]
        if issued:
            run("load.lua", [staging.holders], [",".join(issued)])
        with redis_connection().pipeline(transaction=False) as pipeline:
            if reserved:
                pipeline.hset(staging.holders, mapping=reserved)
                pipeline.zadd(staging.pending, pending_since)
            if revoked:
                pipeline.sadd(staging.revoked, *revoked)
            for name in staging:
                pipeline.expire(name, LEFTOVER_SECONDS)
            pipeline.execute()

    def activate(self, token: str) -> int | None:
        """Activate the staged gate and return the number of units held; None, without a change, if the lock is lost."""
        staging = self._staging_keys(token)
        # The sequence continues from the number of units held.
        held = int(redis_connection().hlen(staging.holders))
        redis_connection().hset(staging.holders, "sequence", held)
        is_active = run("activate.lua", [self.lock_key, *staging, *self.keys], [token, LIFETIME_SECONDS])
        return held if is_active else None

    def is_complete(self, *, drop: bool) -> bool:
        """Whether the gate is complete or absent; ``drop`` removes a partial gate: the next request loads it again."""
        return bool(run("check.lua", self.keys, [int(drop)]) != PARTIAL)

    def number_of_holders(self) -> int:
        return int(redis_connection().hlen(self.keys.holders)) - 1

    def sequence(self) -> int | None:
        """Return the last sequence assigned; None if it is not a number."""
        text = redis_connection().hget(self.keys.holders, "sequence")
        return int(text) if text and re.fullmatch(rb"\d{1,15}", text) else None

    def fields(self) -> Iterator[list[bytes]]:
        """Yield the user fields of ``holders``, in chunks; a field present all the time is yielded at least once."""
        found = redis_connection().hscan_iter(self.keys.holders, count=_CHUNK)
        return chunks((field for field, _ in found if field != b"sequence"), _CHUNK)

    def pending_members(self) -> Iterator[list[bytes]]:
        """Yield the members of ``pending``, in chunks."""
        found = redis_connection().zscan_iter(self.keys.pending, count=_CHUNK)
        return chunks((member for member, _ in found if member != SENTINEL), _CHUNK)

    def pending_for(self, seconds: float, *, limit: int) -> list[bytes]:
        """Return the members that have been pending for more than ``seconds``, the oldest ``limit`` of them."""
        cutoff = _now_ms() - round(seconds * 1000)
        found: list[bytes] = redis_connection().zrange(
            self.keys.pending, "-inf", cutoff, byscore=True, offset=0, num=limit
        )
        return found

    def still_pending(self, users: Sequence[bytes]) -> list[bytes]:
        """Return those of ``users`` that are pending."""
        if not users:
            return []
        times = redis_connection().zmscore(self.keys.pending, list(users))
        return [user for user, pending_since in zip(users, times, strict=True) if pending_since is not None]

    def revoked(self) -> Iterator[list[bytes]]:
        """Yield the members of ``revoked``, in chunks."""
        found = redis_connection().sscan_iter(self.keys.revoked, count=_CHUNK)
        return chunks((member for member in found if member != SENTINEL), _CHUNK)

    def not_revoked(self, user_ids: Sequence[int]) -> list[int]:
        """Return the users who are not in ``revoked``."""
        found = redis_connection().smismember(self.keys.revoked, list(user_ids))
        return [user_id for user_id, exists in zip(user_ids, found, strict=True) if not exists]

    def read(self, users: Sequence[bytes | int]) -> GateRead:
        """Read the entries of ``users``, each of them atomically."""
        found = GateRead([], {}, [])
        for start in range(0, len(users), MOST_PER_CALL):
            chunk = [
                str(user).encode() if isinstance(user, int) else user for user in users[start : start + MOST_PER_CALL]
            ]
            now, *values = run("read.lua", [self.keys.holders, self.keys.pending], chunk)
            for user, entry, pending_since in zip(chunk, values[::2], values[1::2], strict=True):
                if entry is None:
                    found.absent.append(user)
                elif (gate_entry := _entry(user, entry, pending_since, int(now))) is None:
                    found.unexpected[user] = entry
                else:
                    found.entries.append(gate_entry)
        return found

    def add(self, holders: Sequence[tuple[int, UUID | None, float | None]]) -> None:
        """Add (user, undecided request or None, its age in seconds) for users without an entry."""
        now = _now_ms()
        arguments: list[object] = []
        for user_id, request_id, age in holders:
            arguments += [user_id, "-" if request_id is None else f"{request_id}:0"]
            arguments.append("" if age is None else now - round(age * 1000))
        self._repair("add", arguments, width=3)

    def remove(self, entries: Sequence[tuple[bytes | int, bytes]]) -> None:
        """Remove entries by (field, entry), each only if it is unchanged."""
        self._repair("remove", [argument for entry in entries for argument in entry])

    def remove_pending(self, users: Sequence[bytes]) -> None:
        """Remove users without an entry from ``pending``."""
        self._repair("remove_pending", list(users))

    def pending_from_now(self, user_ids: Sequence[int]) -> None:
        """Restart the age of pending users at zero."""
        if user_ids:
            redis_connection().zadd(self.keys.pending, dict.fromkeys(map(str, user_ids), _now_ms()), xx=True)

    def set_sequence(self, least: int) -> None:
        """Raise the last sequence to ``least``, or replace it if it is not a number."""
        self._repair("sequence", [least])

    def unrevoke(self, users: Sequence[bytes]) -> None:
        redis_connection().srem(self.keys.revoked, *users)

    def _repair(self, kind: str, arguments: Sequence[object], *, width: int = 2) -> None:
        step = MOST_PER_CALL * width
        for start in range(0, len(arguments), step):
            run("repair.lua", self.keys, [kind, *arguments[start : start + step]])

    def _keys(self, suffix: str) -> Keys:
        return Keys(f"{self._base}{suffix}", f"{self._base}:open{suffix}", f"{self._base}:revoked{suffix}")

    def _staging_keys(self, token: str) -> Keys:
        """The keys under which a loader builds the gate before it is activated."""
        return self._keys(f":loading:{token}")


def existing(coupon_ids: Collection[int]) -> list[GateStore]:
    """Return the gates of those coupons that have a gate or a part of it."""
    if not coupon_ids:
        return []
    gates = [GateStore(coupon_id) for coupon_id in coupon_ids]
    with redis_connection().pipeline(transaction=False) as pipeline:
        for gate in gates:
            pipeline.exists(gate.keys.holders, gate.keys.pending)
        return [gate for gate, exists in zip(gates, pipeline.execute(), strict=True) if exists]


def is_user(text: bytes) -> bool:
    """Whether ``text`` is a user id."""
    return _USER.fullmatch(text) is not None and int(text) <= MAX_BIGINT


def _entry(user: bytes, entry: bytes, pending_since: bytes | None, now: int) -> GateEntry | None:
    if not is_user(user):
        return None
    # Another writer's score may be any number, also infinite.
    age = now - int(min(max(float(pending_since), 0), _LARGEST_TIME)) if pending_since else None
    if entry == b"-":
        return GateEntry(int(user), entry, None, 0, age)
    match = _ENTRY.fullmatch(entry)
    return match and GateEntry(int(user), entry, UUID(match[1].decode()), int(match[2]), age)


def _now_ms() -> int:
    """Redis's time."""
    seconds, microseconds = redis_connection().time()
    return int(seconds * 1000 + microseconds // 1000)
