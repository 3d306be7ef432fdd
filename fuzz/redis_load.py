"""Overwrites the service's Redis keys with garbage."""

from __future__ import annotations

import threading
import time
from collections import Counter
from random import Random
from typing import Any

from django_redis import get_redis_connection

from coupons.admission.gate.store import GateStore
from coupons.redis_queue import queue
from orders.ranking.days import last_days

from .findings import Findings
from .mutation import ODD_BYTES
from .world import World

_VALUES = (*ODD_BYTES[:-1], b"{}", b"x", b"null", b"[1]", b'{"status":"SUCCESS"}', b'{"v":99}')


class RedisLoad:
    """Overwrites a key of the service every ``pause`` seconds with a value or type that it cannot have."""

    def __init__(self, world: World, seed: str, findings: Findings, *, pause: float) -> None:
        self.written: Counter[str] = Counter()
        self._world = world
        self._seed = seed
        self._findings = findings
        self._pause = pause
        self._redis: Any = get_redis_connection("default")
        self._today = last_days(1)[0]

    def run(self, deadline: float, stopping: threading.Event) -> None:
        """Write until the deadline or ``stopping``."""
        number = 0
        while time.monotonic() < deadline and not stopping.wait(self._pause):
            number += 1
            random = Random(f"{self._seed}:redis:{number}")
            what, key = self._key(random)
            kind = random.choice(["string", "list", "hash", "set", "sorted set", "none"])
            value = random.choice(_VALUES)
            self._findings.sent(f"Redis {number}: {key} becomes a {kind} with {value!r}")
            self._write(key, kind, value)
            self.written[what] += 1

    def _key(self, random: Random) -> tuple[str, str]:
        keys: list[tuple[str, str]] = []
        for coupon in self._world.coupons:
            if coupon.admission == "gate":
                keys += [("gate", key) for key in GateStore(coupon.pk).keys]
        keys += [("list", queue.QUEUE), ("list", queue.WORKERS)]
        keys += [("ranking", "ranking:loaded")]
        keys += [("ranking", f"ranking:{kind}:{self._today}") for kind in ("quantities", "events")]
        request_ids = list(self._world.request_ids)
        if request_ids and random.random() < 0.6:
            return "status", f"status:{random.choice(request_ids)}"
        return random.choice(keys)

    def _write(self, key: str, kind: str, value: bytes) -> None:
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.delete(key)
            match kind:
                case "string":
                    pipeline.set(key, value)
                case "list":
                    pipeline.rpush(key, value)
                case "hash":
                    pipeline.hset(key, value, value)
                case "set":
                    pipeline.sadd(key, value)
                case "sorted set":
                    pipeline.zadd(key, {value: 1})
            pipeline.execute()
