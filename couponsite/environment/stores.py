"""Parsers of the URLs of Redis and PostgreSQL: they return the value or raise ValueError; the constants are limits."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

from psycopg2 import ProgrammingError
from psycopg2.extensions import parse_dsn
from redis import ConnectionPool

from .values import SERVER_NAME, Limits, is_address_if_bracketed, is_port, shown

_MAX_REDIS_DATABASE = 9_999
# Query arguments accepted in REDIS_URL besides those for TLS. redis-py would take others and fail at the first command.
_REDIS_ARGUMENTS = frozenset({"db", "client_name", "health_check_interval"})
_DATABASE_EXAMPLE = (
    "write it like postgres://user@host:5432/name, or with a socket's folder postgres:///name?host=/run/postgresql"
)
_WHOLE_SECONDS = frozenset({"connect_timeout", "keepalives_idle", "keepalives_interval"})
_SSL_MODES = frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"})

REDIS = Limits(
    (
        "redis://h", "redis://h/", f"redis://:p%40ss@h:65535/{_MAX_REDIS_DATABASE}", "rediss://u:p@[::1]:1/0?db=1",
        f"unix:///run/redis.sock?db={_MAX_REDIS_DATABASE}", "rediss://h/0?ssl_cert_reqs=none",
    ),
    (
        "h", "http://h", "redis://", "redis:///0", "redis://h:0/0", "redis://h:65536/0", "redis://h:x", "redis://[h",
        "redis://h/cache", "redis://h/1/2", "redis://h//1", "redis://h/-1", "redis://h/+1", "redis://h/1_0",
        f"redis://h/{_MAX_REDIS_DATABASE + 1}", f"redis://h/0?db={_MAX_REDIS_DATABASE + 1}", "redis://h/0?db=x",
        "redis://h/0?db=1&db=2", "redis://h/0?db=", "redis://h/0?host=other", "redis://h/0?max_connections=1",
        "rediss://h/0?ssl_cert_reqs=perhaps", "redis://h/0#1", "unix://", "unix://run/redis.sock",
        "unix:///run/redis.sock/0?db=x", "redis://a,b/0",
    ),
)  # fmt: skip

DATABASE = Limits(
    (
        "postgres://h/d", "postgresql://u:p%40ss@[::1]:65535/d?sslmode=require", "postgres://u@%2Frun%2Fpg/d",
        "postgres:///d?host=/run/pg", "postgres://u@a:5432,b:5433/d", "postgres://u@a,b/d",
    ),
    (
        "d", "mysql://h/d", "postgres://", "postgres://h", "postgres://h/", "postgres:///d", "postgres://h:0/d",
        "postgres://h:65536/d", "postgres://h:x/d", "postgres://h/a/b", "postgres:////run/pg/d", "postgres://[h/d",
        "postgres://h/d?no_such_option=1", "postgres://h/d?host=", "postgres://a,/d", "postgres://a:1,b:x/d",
        "postgres://h/d%zz", "postgres://h/d#x", "postgres://h/d?connect_timeout=soon", "postgres://h/d?dbname=",
        "postgres://h/d?connect_timeout=3601", "postgres://h/d?sslmode=perhaps", "postgres://run/pg:5432/d",
    ),
)  # fmt: skip


def parse_redis(raw: str) -> str:
    """Check the URL of a Redis server."""
    example = "write it like redis://host:6379/0 or unix:///run/redis.sock?db=0"
    try:
        parts = urlsplit(raw)
        port = parts.port
        arguments = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ValueError(f"is not a URL, {example}") from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError("does not start with redis://, rediss:// or unix://, correct it")
    by_socket = parts.scheme == "unix"
    if by_socket:
        if parts.hostname or len(parts.path) < 2:
            raise ValueError(f"names no socket by its absolute path, {example}")
    else:
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
        if port == 0 or not SERVER_NAME.fullmatch(host):
            raise ValueError(f"names no server, {example}")
    numbers = [value for name, value in arguments if name == "db"]
    if not by_socket and parts.path not in ("", "/"):
        numbers.append(parts.path[1:])
    if not all(_is_redis_database(number) for number in numbers):
        raise ValueError(f"has a database that is not a number from 0 to {_MAX_REDIS_DATABASE}, {example}")
    names = [name for name, _ in arguments]
    if parts.fragment or len(set(names)) < len(names):
        raise ValueError(f"has a fragment (#...) or an argument twice, {example}")
    for name in names:
        if name not in _REDIS_ARGUMENTS and not name.startswith("ssl_"):
            raise ValueError(f"has the argument {shown(name)}; known: {', '.join(sorted(_REDIS_ARGUMENTS))}, ssl_*")
    try:
        # Does not connect: the client only validates its arguments.
        ConnectionPool.from_url(raw).make_connection()
    except Exception:
        raise ValueError(f"has an argument that the Redis client refuses, {example}") from None
    return raw


def _is_redis_database(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9 and int(text) <= _MAX_REDIS_DATABASE


def parse_database(raw: str) -> dict[str, Any]:
    """Parse a PostgreSQL URL to Django's database settings."""
    if not raw.startswith(("postgres://", "postgresql://")):
        raise ValueError(f"does not start with postgres://, {_DATABASE_EXAMPLE}")
    try:
        options = parse_dsn(raw)
    except (ProgrammingError, UnicodeError):
        # libpq's message may quote a password.
        raise ValueError(f"is not a URL that libpq can read, {_DATABASE_EXAMPLE}") from None
    name, host, port = (options.pop(key, "") for key in ("dbname", "host", "port"))
    if not name:
        raise ValueError(f"names no database, {_DATABASE_EXAMPLE}")
    if "/" in name or "#" in name:
        raise ValueError(f"has a path or a fragment (#...) in the database name, {_DATABASE_EXAMPLE}")
    hosts = host.split(",")
    if not all(
        each.startswith("/") or SERVER_NAME.fullmatch(each) or is_address_if_bracketed(f"[{each}]") for each in hosts
    ):
        raise ValueError(f"names no server, {_DATABASE_EXAMPLE}")
    if not all(not each or is_port(each) for each in port.split(",")):
        raise ValueError(f"has a port that is not from 1 to 65535, {_DATABASE_EXAMPLE}")
    for option in _WHOLE_SECONDS & options.keys():
        if not (options[option].isascii() and options[option].isdigit() and 1 <= int(options[option][:9]) <= 3600):
            raise ValueError(f"{option} is not a whole number from 1 to 3600, correct it")
    if options.get("sslmode", "prefer") not in _SSL_MODES:
        raise ValueError(f"sslmode is none of {', '.join(sorted(_SSL_MODES))}, correct it")
    if len(hosts) > 1:
        # Connect to the primary: a standby refuses every write.
        options.setdefault("target_session_attrs", "read-write")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "USER": options.pop("user", ""),
        "PASSWORD": options.pop("password", ""),
        "HOST": host,
        "PORT": port.strip(",") and port,
        "OPTIONS": options,
    }
