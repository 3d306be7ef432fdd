"""Reads and single repairs of the gate, for the reconciler. Everything here raises RedisError.

Reads are chunked, so that a gate with a million entries does not block other clients of Redis.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from uuid import UUID

from common.bigint import MAX_BIGINT

from .redis_keys import MOST_PER_CALL, PARTIAL, SENTINEL, keys, lock_key, redis, run

_GATE_KEY = re.compile(rb"gate:\{([1-9]\d{0,18})\}(:open|:revoked|:lock)?")
_STAGING_KEY = re.compile(rb"gate:\{([1-9]\d{0,18})\}(?::open|:revoked)?:loading:(.+)")
_ENTRY = re.compile(rb"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}):(\d{1,15})")
_USER = re.compile(rb"[1-9]\d{0,18}")
_CHUNK = 1000
_LARGEST_TIME = 2**53


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


def existing(coupon_ids: Sequence[int]) -> list[int]:
    """Return the coupons that have at least part of a gate."""
    with redis().pipeline(transaction=False) as pipeline:
        for coupon_id in coupon_ids:
            names = keys(coupon_id)
            pipeline.exists(names.holders, names.pending)
        return [coupon_id for coupon_id, exists in zip(coupon_ids, pipeline.execute(), strict=True) if exists]


def is_complete(coupon_id: int, *, drop: bool) -> bool:
    """Whether the gate is complete or absent; ``drop`` removes a partial gate, which the next request loads again."""
    return bool(run("check.lua", keys(coupon_id), [int(drop)]) != PARTIAL)


def number_of_holders(coupon_id: int) -> int:
    return int(redis().hlen(keys(coupon_id).holders)) - 1


def sequence(coupon_id: int) -> int | None:
    """Return the last sequence assigned; None if it is not a number."""
    text = redis().hget(keys(coupon_id).holders, "sequence")
    return int(text) if text and re.fullmatch(rb"\d{1,15}", text) else None


def fields(coupon_id: int) -> Iterator[list[bytes]]:
    """Yield the user fields of ``holders``, in chunks; a field that is present throughout comes at least once."""
    client, name, cursor = redis(), keys(coupon_id).holders, 0
    while True:
        cursor, found = client.hscan(name, cursor, count=_CHUNK)
        found.pop(b"sequence", None)
        if found:
            yield list(found)
        if not cursor:
            return


def pending_members(coupon_id: int) -> Iterator[list[bytes]]:
    """Yield the members of ``pending``, in chunks."""
    client, name, cursor = redis(), keys(coupon_id).pending, 0
    while True:
        cursor, found = client.zscan(name, cursor, count=_CHUNK)
        if members := [member for member, _ in found if member != SENTINEL]:
            yield members
        if not cursor:
            return


def pending_for(coupon_id: int, seconds: float, *, limit: int) -> list[bytes]:
    """Return the members that have been pending for more than ``seconds``, the oldest ``limit`` of them."""
    client = redis()
    seconds_part, microseconds = client.time()
    cutoff = seconds_part * 1000 + microseconds // 1000 - round(seconds * 1000)
    found: list[bytes] = client.zrange(keys(coupon_id).pending, "-inf", cutoff, byscore=True, offset=0, num=limit)
    return found


def revoked(coupon_id: int) -> Iterator[list[bytes]]:
    """Yield the members of ``revoked``, in chunks."""
    client, name, cursor = redis(), keys(coupon_id).revoked, 0
    while True:
        cursor, found = client.sscan(name, cursor, count=_CHUNK)
        if members := [member for member in found if member != SENTINEL]:
            yield members
        if not cursor:
            return


def look(coupon_id: int, users: Sequence[bytes | int]) -> tuple[list[GateEntry], dict[bytes, bytes], list[bytes]]:
    """Read (entries, unexpected values by field, fields without an entry); each user's entry is read atomically."""
    names = keys(coupon_id)
    members, unexpected, absent = [], {}, []
    for start in range(0, len(users), MOST_PER_CALL):
        chunk = [str(user).encode() if isinstance(user, int) else user for user in users[start : start + MOST_PER_CALL]]
        now, *values = run("read.lua", [names.holders, names.pending], chunk)
        for user, entry, pending_since in zip(chunk, values[::2], values[1::2], strict=True):
            if entry is None:
                absent.append(user)
            elif (gate_entry := _entry(user, entry, pending_since, int(now))) is None:
                unexpected[user] = entry
            else:
                members.append(gate_entry)
    return members, unexpected, absent


def remove(coupon_id: int, entries: Sequence[tuple[bytes | int, bytes]]) -> int:
    """Remove entries by (field, entry), each only if it is unchanged; returns the number removed."""
    return _repair(coupon_id, "remove", [argument for entry in entries for argument in entry])


def remove_pending(coupon_id: int, users: Sequence[bytes]) -> int:
    """Remove users without an entry from ``pending``; returns the number removed."""
    return _repair(coupon_id, "remove_pending", list(users))


def add(coupon_id: int, holders: Sequence[tuple[int, UUID | None, float | None]]) -> int:
    """Add (user, undecided request or None, its age in seconds) for users without an entry; returns how many."""
    seconds, microseconds = redis().time()
    now = seconds * 1000 + microseconds // 1000
    arguments: list[object] = []
    for user_id, request_id, age in holders:
        arguments += [user_id, "-" if request_id is None else f"{request_id}:0"]
        arguments.append("" if age is None else now - round(age * 1000))
    return _repair(coupon_id, "add", arguments, width=3)


def pending_from_now(coupon_id: int, user_ids: Sequence[int]) -> None:
    """Restart the age of pending users at zero."""
    if user_ids:
        seconds, microseconds = redis().time()
        now = seconds * 1000 + microseconds // 1000
        redis().zadd(keys(coupon_id).pending, dict.fromkeys(map(str, user_ids), now), xx=True)


def set_sequence(coupon_id: int, least: int) -> int:
    """Raise the last sequence to ``least``, or replace it if it is not a number; returns the number of changes."""
    return _repair(coupon_id, "sequence", [least])


def still_pending(coupon_id: int, users: Sequence[bytes]) -> list[bytes]:
    """Return those of ``users`` that are pending."""
    if not users:
        return []
    times = redis().zmscore(keys(coupon_id).pending, list(users))
    return [user for user, pending_since in zip(users, times, strict=True) if pending_since is not None]


def not_revoked(coupon_id: int, user_ids: Sequence[int]) -> list[int]:
    """Return the users who are not in ``revoked``."""
    found = redis().smismember(keys(coupon_id).revoked, list(user_ids))
    return [user_id for user_id, exists in zip(user_ids, found, strict=True) if not exists]


def is_user(text: bytes) -> bool:
    """Whether ``text`` is a user id."""
    return _USER.fullmatch(text) is not None and int(text) <= MAX_BIGINT


def unrevoke(coupon_id: int, users: Sequence[bytes]) -> None:
    redis().srem(keys(coupon_id).revoked, *users)


class KeyScan:
    """A scan of all keys of Redis for those of gates; each step continues where the last one stopped."""

    def __init__(self) -> None:
        self._cursor = 0

    def step(self, calls: int | None) -> Iterator[list[bytes]]:
        """Yield keys of gates; makes at most ``calls`` calls, None: until the scan is complete."""
        client = redis()
        while calls is None or calls > 0:
            self._cursor, found = client.scan(self._cursor, match="gate:*", count=_CHUNK)
            if found:
                yield found
            if not self._cursor:
                return
            calls = None if calls is None else calls - 1


def unexpected_keys(names: Sequence[bytes], coupon_ids: set[int]) -> list[bytes]:
    """Return those of ``names`` that belong neither to a gate of these coupons nor to a loader."""
    return [name for name in names if not _is_expected(name, coupon_ids)]


def remove_keys(names: Sequence[bytes]) -> None:
    redis().unlink(*names)


def _is_expected(name: bytes, coupon_ids: set[int]) -> bool:
    if match := _GATE_KEY.fullmatch(name):
        # A lock without expiry would keep the gate from being loaded for ever.
        return int(match[1]) in coupon_ids and (match[2] != b":lock" or redis().ttl(name) != -1)
    if match := _STAGING_KEY.fullmatch(name):
        # Staging keys of a loader that is gone expire. Those without expiry are expected only while it holds the lock.
        return redis().ttl(name) != -1 or bool(redis().get(lock_key(int(match[1]))) == match[2])
    return False


def _entry(user: bytes, entry: bytes, pending_since: bytes | None, now: int) -> GateEntry | None:
    if not is_user(user):
        return None
    # Scores written by others may be any number, also infinite.
    age = now - int(min(max(float(pending_since), 0), _LARGEST_TIME)) if pending_since else None
    if entry == b"-":
        return GateEntry(int(user), entry, None, 0, age)
    match = _ENTRY.fullmatch(entry)
    return match and GateEntry(int(user), entry, UUID(match[1].decode()), int(match[2]), age)


def _repair(coupon_id: int, kind: str, arguments: Sequence[object], *, width: int = 2) -> int:
    repaired, step = 0, MOST_PER_CALL * width
    for start in range(0, len(arguments), step):
        repaired += run("repair.lua", keys(coupon_id), [kind, *arguments[start : start + step]])
    return repaired
