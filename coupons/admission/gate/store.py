"""The gate as it is, for whoever holds it against PostgreSQL, and the single changes that mend it.

Reads come in pieces, so that nobody else has to wait for a gate of a million.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from uuid import UUID

from .redis_keys import MOST_PER_CALL, PARTIAL, SENTINEL, keys, lock_key, redis, run

_OF_A_COUPON = re.compile(rb"gate:\{([1-9]\d{0,18})\}(:open|:revoked|:lock)?")
_BEING_BUILT = re.compile(rb"gate:\{([1-9]\d{0,18})\}(?::open|:revoked)?:loading:(.+)")
_ENTRY = re.compile(rb"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}):(\d{1,15})")
_USER = re.compile(rb"[1-9]\d{0,18}")
_CHUNK = 1000
_LARGEST_ID = 2**63 - 1
_LARGEST_TIME = 2**53


class GateEntry(NamedTuple):
    """A user's entry. ``request_id`` None: a piece that the gate did not give; ``age_ms`` None: not open."""

    user_id: int
    entry: bytes
    request_id: UUID | None
    place: int
    age_ms: int | None

    @property
    def age_seconds(self) -> float | None:
        return None if self.age_ms is None else self.age_ms / 1000


def existing(coupon_ids: Sequence[int]) -> list[int]:
    """Those coupons of which there is at least part of a gate. Raises RedisError, as everything here does."""
    with redis().pipeline(transaction=False) as pipeline:
        for coupon_id in coupon_ids:
            names = keys(coupon_id)
            pipeline.exists(names.takers, names.open)
        return [coupon_id for coupon_id, there in zip(coupon_ids, pipeline.execute(), strict=True) if there]


def is_whole(coupon_id: int, *, drop: bool) -> bool:
    """Whether what there is of a gate is one; with ``drop``, what is not is taken away, so that it loads itself."""
    return bool(run("check.lua", keys(coupon_id), [int(drop)]) != PARTIAL)


def number_of_takers(coupon_id: int) -> int:
    return int(redis().hlen(keys(coupon_id).takers)) - 1


def sequence(coupon_id: int) -> int | None:
    """The last place in line; None if that is no number."""
    text = redis().hget(keys(coupon_id).takers, "sequence")
    return int(text) if text and re.fullmatch(rb"\d{1,15}", text) else None


def fields(coupon_id: int) -> Iterator[list[bytes]]:
    """The fields of the takers but ``sequence``, in pieces; one that stays meanwhile comes at least once."""
    client, name, cursor = redis(), keys(coupon_id).takers, 0
    while True:
        cursor, found = client.hscan(name, cursor, count=_CHUNK)
        found.pop(b"sequence", None)
        if found:
            yield list(found)
        if not cursor:
            return


def open_fields(coupon_id: int) -> Iterator[list[bytes]]:
    """The members of the open ones, in pieces."""
    client, name, cursor = redis(), keys(coupon_id).open, 0
    while True:
        cursor, found = client.zscan(name, cursor, count=_CHUNK)
        if members := [member for member, _ in found if member != SENTINEL]:
            yield members
        if not cursor:
            return


def open_for(coupon_id: int, seconds: float, *, limit: int) -> list[bytes]:
    """The members that have been open for longer than that, the oldest ``limit``."""
    client = redis()
    whole, microseconds = client.time()
    until = whole * 1000 + microseconds // 1000 - round(seconds * 1000)
    found: list[bytes] = client.zrange(keys(coupon_id).open, "-inf", until, byscore=True, offset=0, num=limit)
    return found


def revoked(coupon_id: int) -> Iterator[list[bytes]]:
    """Who gets no other piece, in pieces."""
    client, name, cursor = redis(), keys(coupon_id).revoked, 0
    while True:
        cursor, found = client.sscan(name, cursor, count=_CHUNK)
        if members := [member for member in found if member != SENTINEL]:
            yield members
        if not cursor:
            return


def look(coupon_id: int, users: Sequence[bytes | int]) -> tuple[list[GateEntry], dict[bytes, bytes], list[bytes]]:
    """(members, entries by field that no gate writes, fields without an entry), each user's at one moment."""
    names = keys(coupon_id)
    members, foreign, absent = [], {}, []
    for start in range(0, len(users), MOST_PER_CALL):
        chunk = [str(user).encode() if isinstance(user, int) else user for user in users[start : start + MOST_PER_CALL]]
        now, *looked = run("read.lua", [names.takers, names.open], chunk)
        for user, entry, opened in zip(chunk, looked[::2], looked[1::2], strict=True):
            if entry is None:
                absent.append(user)
            elif (member := _entry(user, entry, opened, int(now))) is None:
                foreign[user] = entry
            else:
                members.append(member)
    return members, foreign, absent


def remove(coupon_id: int, entries: Sequence[tuple[bytes | int, bytes]]) -> int:
    """Take out the entries of fields, each only if it is still that one; returns how many were."""
    return _repair(coupon_id, "remove", [argument for entry in entries for argument in entry])


def close(coupon_id: int, users: Sequence[bytes]) -> int:
    """Forget that users without an entry are open."""
    return _repair(coupon_id, "close", list(users))


def add(coupon_id: int, takers: Sequence[tuple[int, UUID | None, float | None]]) -> int:
    """Add (user, request under way or None, its age in seconds) that have no entry; returns how many had none."""
    seconds, microseconds = redis().time()
    now = seconds * 1000 + microseconds // 1000
    arguments: list[object] = []
    for user_id, request_id, age in takers:
        arguments += [user_id, "-" if request_id is None else f"{request_id}:0"]
        arguments.append("" if age is None else now - round(age * 1000))
    return _repair(coupon_id, "add", arguments, width=3)


def open_from_now(coupon_id: int, user_ids: Sequence[int]) -> None:
    """Count the age of open ones from now on."""
    if user_ids:
        seconds, microseconds = redis().time()
        now = seconds * 1000 + microseconds // 1000
        redis().zadd(keys(coupon_id).open, dict.fromkeys(map(str, user_ids), now), xx=True)


def set_sequence(coupon_id: int, least: int) -> int:
    """Set the last place in line, unless it is a number that is not less."""
    return _repair(coupon_id, "sequence", [least])


def still_open(coupon_id: int, users: Sequence[bytes]) -> list[bytes]:
    """Those of ``users`` that are open."""
    if not users:
        return []
    times = redis().zmscore(keys(coupon_id).open, list(users))
    return [user for user, opened in zip(users, times, strict=True) if opened is not None]


def not_revoked(coupon_id: int, user_ids: Sequence[int]) -> list[int]:
    """Those of the users who are not barred."""
    found = redis().smismember(keys(coupon_id).revoked, list(user_ids))
    return [user_id for user_id, there in zip(user_ids, found, strict=True) if not there]


def is_user(text: bytes) -> bool:
    """Whether it is a user's id."""
    return _USER.fullmatch(text) is not None and int(text) <= _LARGEST_ID


def unrevoke(coupon_id: int, users: Sequence[bytes]) -> None:
    redis().srem(keys(coupon_id).revoked, *users)


class KeyScan:
    """A walk over all keys of Redis in search of those of the gate; it goes on where the last step ended."""

    def __init__(self) -> None:
        self._cursor = 0

    def step(self, calls: int | None) -> Iterator[list[bytes]]:
        """The gate's keys found by that many calls, or (None) until the walk is at its end."""
        client = redis()
        while calls is None or calls > 0:
            self._cursor, found = client.scan(self._cursor, match="gate:*", count=_CHUNK)
            if found:
                yield found
            if not self._cursor:
                return
            calls = None if calls is None else calls - 1


def foreign_keys(names: Sequence[bytes], coupon_ids: set[int]) -> list[bytes]:
    """Those of ``names`` that belong to no gate of these coupons and to nobody who builds one."""
    return [name for name in names if not _is_ours(name, coupon_ids)]


def remove_keys(names: Sequence[bytes]) -> None:
    redis().unlink(*names)


def _is_ours(name: bytes, coupon_ids: set[int]) -> bool:
    if match := _OF_A_COUPON.fullmatch(name):
        # A lock that never runs out would keep the gate from being loaded for ever.
        return int(match[1]) in coupon_ids and (match[2] != b":lock" or redis().ttl(name) != -1)
    if match := _BEING_BUILT.fullmatch(name):
        # What nobody builds any more expires; without that only its builder may have it.
        return redis().ttl(name) != -1 or bool(redis().get(lock_key(int(match[1]))) == match[2])
    return False


def _entry(user: bytes, entry: bytes, opened: bytes | None, now: int) -> GateEntry | None:
    if not is_user(user):
        return None
    # Scores may be anything, infinite too.
    age = now - int(min(max(float(opened), 0), _LARGEST_TIME)) if opened else None
    if entry == b"-":
        return GateEntry(int(user), entry, None, 0, age)
    match = _ENTRY.fullmatch(entry)
    return match and GateEntry(int(user), entry, UUID(match[1].decode()), int(match[2]), age)


def _repair(coupon_id: int, kind: str, arguments: Sequence[object], *, width: int = 2) -> int:
    made, most = 0, MOST_PER_CALL * width
    for start in range(0, len(arguments), most):
        made += run("repair.lua", keys(coupon_id), [kind, *arguments[start : start + most]])
    return made
