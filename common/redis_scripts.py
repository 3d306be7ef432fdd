"""Lua scripts in Redis."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

from redis.exceptions import NoScriptError

from .redis_client import redis_connection


def run_script(source: str, keys: Sequence[Any], args: Sequence[Any] = ()) -> Any:
    """Run the Lua script ``source`` and return its reply. Raises RedisError.

    Its digest is sent; if the server has lost the script, the text, so that no flush of scripts can come in between.
    """
    client = redis_connection()
    try:
        return client.evalsha(_digest(source), len(keys), *keys, *args)
    except NoScriptError:
        return client.eval(source, len(keys), *keys, *args)


@cache
def _digest(source: str) -> str:
    return hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
