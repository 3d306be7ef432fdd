"""Typed access to environment variables: every error names the variable and says what to do."""

from __future__ import annotations

import ipaddress
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlsplit
from zoneinfo import ZoneInfo

from django.core.exceptions import ImproperlyConfigured
from psycopg2 import ProgrammingError
from psycopg2.extensions import parse_dsn
from redis import ConnectionPool

from common.api import strict_json

T = TypeVar("T")

_FLAGS = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}
_PERIODS = {"second": 1, "min": 60, "hour": 3600, "day": 86400}

# Valid Host headers (django.http.request.host_validation_re), without a port.
_HOST = re.compile(r"\.?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[A-Fa-f0-9:.]+\]|\*")
_SERVER_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[A-Fa-f0-9:.]+\]")
# An origin as browsers send it: lower case, no path, no default port.
_ORIGIN = re.compile(r"(https?)://((?:\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[a-f0-9:.]+\])(?::([1-9][0-9]{0,4}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}

_MAX_LENGTH = 4096
# Longer values are truncated in error messages.
_MAX_SHOWN = 40
_MAX_RATE = 1_000_000
_MAX_REDIS_DATABASE = 9_999
# Query arguments accepted in REDIS_URL besides those for TLS. redis-py would take others and fail at the first command.
_REDIS_ARGUMENTS = frozenset({"db", "client_name", "health_check_interval"})
# Whitespace that JSON values may contain.
_LAYOUT = str.maketrans("", "", "\n\r\t")


class Rate(NamedTuple):
    """At most ``limit`` in any window of ``seconds``."""

    limit: int
    seconds: int


class Limits(NamedTuple):
    """Test values of a setting: accepted ones at its limits, and refused ones just past them."""

    accepted: tuple[str, ...]
    refused: tuple[str, ...]


class Environment:
    """Read settings from ``variables``; an empty value counts as unset.

    Every method takes the variable's name and returns the typed value, or ``default`` when it is unset (a
    ``None`` default makes it required). A missing or bad value raises ImproperlyConfigured with one line,
    ``NAME: what is wrong, what to do``; a value that may be a secret is never quoted.

    Every setting has limits: ``limits`` maps its name to test values at and just past them.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self.limits: dict[str, Limits] = {}

    def _read(
        self, name: str, default: T | None, parse: Callable[[str], T], limits: Limits, *, is_ascii: bool = True
    ) -> T:
        self.limits[name] = limits
        raw = self._variables.get(name, "").strip()
        if not raw:
            if default is None:
                raise ImproperlyConfigured(f"{name}: is not set, give it a value (see .env.example)")
            return default
        try:
            _check_characters(raw, is_ascii=is_ascii)
            return parse(raw)
        except ValueError as error:
            raise ImproperlyConfigured(f"{name}: {error}") from None

    def text(self, name: str, default: str | None = None, *, longest: int) -> str:
        """Read up to ``longest`` printable ASCII characters."""

        def parse(raw: str) -> str:
            if len(raw) > longest:
                raise ValueError(f"is longer than {longest} characters, shorten it")
            return raw

        return self._read(name, default, parse, Limits(("x", "x" * longest), ("x" * (longest + 1), "a\x07", "\u00e9")))

    def regex(self, name: str, default: str, pattern: re.Pattern[str], description: str, *, limits: Limits) -> str:
        """Read a text that matches ``pattern`` completely; ``description`` names the format in the error."""

        def parse(raw: str) -> str:
            if not pattern.fullmatch(raw):
                raise ValueError(f"{_shown(raw)} is not {description}, correct it")
            return raw

        return self._read(name, default, parse, limits)

    def secret(self, name: str, default: str | None = None, *, at_least: int) -> str:
        """Read a text of ``at_least`` bytes of UTF-8."""

        def parse(raw: str) -> str:
            size = len(raw.encode())
            if size < at_least:
                raise ValueError(f"is shorter than {at_least} bytes, make one with `openssl rand -hex 32`")
            if size > _MAX_LENGTH:
                raise ValueError(f"is longer than {_MAX_LENGTH} bytes, make one with `openssl rand -hex 32`")
            return raw

        limits = Limits(("s" * at_least, "s" * _MAX_LENGTH), ("s" * (_MAX_LENGTH + 1), "s" * at_least + "\x01"))
        if at_least > 1:
            limits = Limits(limits.accepted, ("s" * (at_least - 1), *limits.refused))
        return self._read(name, default, parse, limits, is_ascii=False)

    def flag(self, name: str, default: bool) -> bool:
        def parse(raw: str) -> bool:
            if raw not in _FLAGS:
                raise ValueError(f"{_shown(raw)} is not a boolean, use one of {', '.join(_FLAGS)}")
            return _FLAGS[raw]

        return self._read(name, default, parse, Limits(tuple(_FLAGS), ("yes", "2", "TRUE")))

    def integer(self, name: str, default: int, *, minimum: int, maximum: int) -> int:
        """Read an integer from ``minimum`` to ``maximum``."""

        def parse(raw: str) -> int:
            if not (raw.isascii() and raw.removeprefix("-").isdigit()):
                raise ValueError(f"{_shown(raw)} is not a whole number, write it in decimal digits")
            if len(raw) > 18 or not minimum <= int(raw) <= maximum:
                raise ValueError(f"{_shown(raw)} is out of range, use {minimum} to {maximum}")
            return int(raw)

        return self._read(
            name,
            default,
            parse,
            Limits((str(minimum), str(maximum)), (str(minimum - 1), str(maximum + 1), "9" * 5000)),
        )

    def decimal(self, name: str, default: float, *, minimum: float, maximum: float) -> float:
        """Read a decimal number from ``minimum`` to ``maximum``."""

        def parse(raw: str) -> float:
            try:
                value = float(raw)
            except ValueError:
                raise ValueError(f"{_shown(raw)} is not a number, write it like 1.5") from None
            if not minimum <= value <= maximum:
                raise ValueError(f"{_shown(raw)} is out of range, use {minimum:g} to {maximum:g}")
            return value

        past = (f"{math.nextafter(minimum, -math.inf)!r}", f"{math.nextafter(maximum, math.inf)!r}", "nan", "inf")
        return self._read(name, default, parse, Limits((f"{minimum!r}", f"{maximum!r}"), past))

    def hosts(self, name: str, default: list[str]) -> list[str]:
        """Read a comma-separated list of host names without scheme and port; ``.example.com`` includes subdomains."""

        def parse(raw: str) -> list[str]:
            found = [word.strip() for word in raw.split(",") if word.strip()]
            for host in found:
                if not _HOST.fullmatch(host) or not _is_address_if_bracketed(host):
                    raise ValueError(
                        f"{_shown(host)} is not a host name: no scheme, port or path, IPv6 in brackets; write it like"
                        " shop.example,.shop.example,[::1]"
                    )
            return found

        return self._read(
            name,
            default,
            parse,
            Limits(
                ("shop.example", "*", ".shop.example, 127.0.0.1,[::1]"),
                ("https://shop.example", "shop.example:8000", "shop.example/", "::1", "[::1]:80", "[1::2::3]", "a b"),
            ),
        )

    def origins(self, name: str) -> list[str]:
        """Read a comma-separated list of origins as browsers send them, scheme included; empty when unset."""

        def parse(raw: str) -> list[str]:
            found = [word.strip() for word in raw.split(",") if word.strip()]
            for origin in found:
                match = _ORIGIN.fullmatch(origin)
                port = match and match[4]
                if (
                    match is None
                    or not _is_address_if_bracketed(match[2])
                    or port == _DEFAULT_PORTS[match[1]]
                    or int(port or 0) > 65535
                ):
                    raise ValueError(
                        f"{_shown(origin)} is not an origin: lower case, no path, no slash at the end, no default"
                        " port; write it like https://shop.example,https://app.example:8443"
                    )
            return found

        return self._read(
            name,
            [],
            parse,
            Limits(
                ("https://shop.example", "http://[::1]:8000,https://*.shop.example:65535"),
                (
                    "shop.example", "https://shop.example/", "https://Shop.example", "HTTPS://shop.example",
                    "https://shop.example:443", "http://shop.example:80", "https://shop.example:65536", "https://u@h",
                    "https://[1::2::3]",
                ),
            ),
        )  # fmt: skip

    def json(self, name: str, default: object, *, limits: Limits) -> Any:
        def parse(raw: str) -> object:
            try:
                return strict_json.decode(raw.encode())
            except ValueError:
                raise ValueError("is not valid JSON, check the quotes and duplicate names") from None

        limits = Limits(limits.accepted, (*limits.refused, "{", "[]", "1", '{"a": NaN}', "[" * 100))
        return self._read(name, default, parse, limits, is_ascii=False)

    def json_overlay(self, name: str, apply: Callable[[object], T], *, limits: Limits) -> T:
        """Return ``apply`` of the JSON object in the variable (``{}`` when unset).

        A ValueError from ``apply`` becomes the error.
        """
        try:
            return apply(self.json(name, {}, limits=limits))
        except ValueError as error:
            raise ImproperlyConfigured(f"{name}: {error}") from None

    def choices(
        self, name: str, *, default: Mapping[str, str], allowed: tuple[str, ...] = (), longest: int = 100
    ) -> dict[str, str]:
        """Read a JSON object of strings that overrides entries of ``default``: only its names, only ``allowed`` values.

        Without ``allowed`` a value is any text of 1 to ``longest`` printable characters.
        """

        def override(changes: object) -> dict[str, str]:
            if not isinstance(changes, dict):
                raise ValueError(f'is not a JSON object, write {{"{next(iter(default))}": "..."}}')
            for key, value in changes.items():
                if key not in default:
                    raise ValueError(f"unknown name {_shown(key)}; known: {', '.join(default)}")
                if allowed and value not in allowed:
                    raise ValueError(f"{key} must be {' or '.join(allowed)}")
                if not isinstance(value, str) or not value.strip() or len(value) > longest or not value.isprintable():
                    raise ValueError(f"{key} must be a text of 1 to {longest} printable characters")
            return {**default, **changes}

        first = next(iter(default))
        accepted = allowed or ("x", "x" * longest)
        refused = ("no such choice", "") if allowed else ("", " ", "x" * (longest + 1), "\x07")
        return self.json_overlay(
            name,
            override,
            limits=Limits(
                tuple(json.dumps({first: value}) for value in accepted),
                (
                    *(json.dumps({first: value}) for value in (*refused, 1, None, {}, [first])),
                    json.dumps({"no such name": accepted[0]}),
                    f'{{"{first}": "{accepted[0]}", "{first}": "{accepted[0]}"}}',
                ),
            ),
        )

    def client_options(
        self, name: str, *, fixed: frozenset[str], ranges: Mapping[str, tuple[int, int]]
    ) -> dict[str, str | int | float | bool]:
        """Read librdkafka properties from a JSON object.

        Properties in ``fixed`` protect the guarantees and are refused; those in ``ranges`` must be whole numbers from
        the first to the second limit, because librdkafka accepts values that the service cannot work with.
        """

        def check(options: object) -> dict[str, str | int | float | bool]:
            if not isinstance(options, dict):
                raise ValueError('is not a JSON object, write {"property": value}')
            for key, value in options.items():
                _check_option(key, value, fixed, ranges)
            return options

        return self.json_overlay(
            name,
            check,
            limits=Limits(
                tuple(json.dumps({key: limit}) for key, both in ranges.items() for limit in both),
                (
                    *(json.dumps({key: 1}) for key in sorted(fixed)),
                    *(json.dumps({key: low - 1}) for key, (low, _) in ranges.items()),
                    *(json.dumps({key: str(high + 1)}) for key, (_, high) in ranges.items()),
                    *(json.dumps({key: True}) for key in ranges),
                    '{"client.id": " "}', '{"client.id": "a\\u0007"}', '{"client.id": null}', '{"client.id": {}}',
                    f'{{"log_level": {10**30}}}', '{"log_level": 1e999}',
                ),
            ),
        )  # fmt: skip

    def url(self, name: str, default: str | None) -> str:
        """Read the URL of an HTTP service: http or https, with a host."""

        def parse(raw: str) -> str:
            if len(raw) > _MAX_LENGTH:
                raise ValueError(f"is longer than {_MAX_LENGTH} characters, shorten it")
            try:
                parts = urlsplit(raw)
                port, host = parts.port, parts.hostname
            except ValueError:
                raise ValueError("is not a URL, write it like https://host:port/path") from None
            if parts.scheme not in ("http", "https"):
                raise ValueError("does not start with https:// or http://, correct it")
            bracketed = f"[{host}]" if host and ":" in host else host or ""
            if port == 0 or not _SERVER_NAME.fullmatch(bracketed):
                raise ValueError("names no server, write it like https://host:port/path")
            if " " in raw or parts.fragment:
                raise ValueError("has a blank or a fragment (#...), write it like https://host:port/path")
            return raw

        accepted = (
            "http://h",
            "https://shop.example:65535/path?key=value",
            "http://[::1]:1/",
            "http://h/".ljust(4096, "x"),
        )
        refused = (
            "h", "ftp://h", "https://", "https://:80", "https://h:0", "https://h:65536", "https://h:x", "https://[h",
            "https://h/#x", "https://h/a b", "https://h\u00e9", "http://h/".ljust(4097, "x"), "http://h/\x07",
        )  # fmt: skip
        return self._read(name, default, parse, Limits(accepted, refused))

    def redis(self, name: str, default: str | None) -> str:
        """Read the URL of a Redis server: ``redis://host:port/0``, ``rediss://`` with TLS, ``unix:///socket?db=0``."""
        accepted = (
            "redis://h", "redis://h/", f"redis://:p%40ss@h:65535/{_MAX_REDIS_DATABASE}", "rediss://u:p@[::1]:1/0?db=1",
            f"unix:///run/redis.sock?db={_MAX_REDIS_DATABASE}", "rediss://h/0?ssl_cert_reqs=none",
        )  # fmt: skip
        refused = (
            "h", "http://h", "redis://", "redis:///0", "redis://h:0/0", "redis://h:65536/0", "redis://h:x", "redis://[h",
            "redis://h/cache", "redis://h/1/2", "redis://h//1", "redis://h/-1", "redis://h/+1", "redis://h/1_0",
            f"redis://h/{_MAX_REDIS_DATABASE + 1}", f"redis://h/0?db={_MAX_REDIS_DATABASE + 1}", "redis://h/0?db=x",
            "redis://h/0?db=1&db=2", "redis://h/0?db=", "redis://h/0?host=other", "redis://h/0?max_connections=1",
            "rediss://h/0?ssl_cert_reqs=perhaps", "redis://h/0#1", "unix://", "unix://run/redis.sock",
            "unix:///run/redis.sock/0?db=x", "redis://a,b/0",
        )  # fmt: skip
        return self._read(name, default, _redis_url, Limits(accepted, refused))

    def database(self, name: str, default: str | None) -> dict[str, Any]:
        """Read a PostgreSQL URL as Django's database settings; libpq parses it, query arguments are its options."""
        accepted = (
            "postgres://h/d", "postgresql://u:p%40ss@[::1]:65535/d?sslmode=require", "postgres://u@%2Frun%2Fpg/d",
            "postgres:///d?host=/run/pg", "postgres://u@a:5432,b:5433/d", "postgres://u@a,b/d",
        )  # fmt: skip
        refused = (
            "d", "mysql://h/d", "postgres://", "postgres://h", "postgres://h/", "postgres:///d", "postgres://h:0/d",
            "postgres://h:65536/d", "postgres://h:x/d", "postgres://h/a/b", "postgres:////run/pg/d", "postgres://[h/d",
            "postgres://h/d?no_such_option=1", "postgres://h/d?host=", "postgres://a,/d", "postgres://a:1,b:x/d",
            "postgres://h/d%zz", "postgres://h/d#x", "postgres://h/d?connect_timeout=soon", "postgres://h/d?dbname=",
            "postgres://h/d?connect_timeout=3601", "postgres://h/d?sslmode=perhaps", "postgres://run/pg:5432/d",
        )  # fmt: skip
        return self._read(name, _database(default) if default else None, _database, Limits(accepted, refused))

    def servers(self, name: str, default: str | None) -> str:
        """Read a comma-separated list of ``host:port``."""

        def parse(raw: str) -> str:
            servers = [server.strip() for server in raw.split(",")]
            for server in servers:
                host, _, port = server.rpartition(":")
                if not _SERVER_NAME.fullmatch(host) or not _is_address_if_bracketed(host) or not _is_port(port):
                    raise ValueError("is not a list of host:port, write it like kafka1:9092,kafka2:9092")
            return ",".join(servers)

        accepted = ("h:1", "h:65535", "kafka-1.example:9092, [::1]:9092")
        refused = ("h", "h:", ":9092", "h:0", "h:65536", "a:1,,b:2", "PLAINTEXT://h:1", "a b:1", "::1:9092", "h:1/")
        return self._read(name, default, parse, Limits(accepted, refused))

    def address(self, name: str, default: str) -> str:
        """Read an IP address to listen on; the servers do not resolve names."""

        def parse(raw: str) -> str:
            try:
                ipaddress.ip_address(raw)
            except ValueError:
                raise ValueError(
                    f"{_shown(raw)} is not an IP address, use 0.0.0.0 for every interface, :: to include IPv6"
                ) from None
            return raw

        refused = ("nonsense", "localhost", "[::1]", "256.0.0.1", "127.0.0.1:80", "0.0.0.0/0")
        return self._read(name, default, parse, Limits(("0.0.0.0", "127.0.0.1", "::", "::1"), refused))

    def folder(self, name: str) -> str:
        """Read the path of an existing folder that this process can write to; empty when unset."""

        def parse(raw: str) -> str:
            if not os.path.isdir(raw) or not os.access(raw, os.W_OK | os.X_OK):
                raise ValueError("is not a folder that this process can write to, create it or unset the variable")
            return raw

        return self._read(name, "", parse, Limits((tempfile.gettempdir(),), ("/no/such/folder", "/dev/null")))

    def rate(self, name: str, default: str) -> Rate:
        """Read a number per second, minute, hour or day, as in ``10/min``."""

        def parse(raw: str) -> Rate:
            count, _, period = raw.partition("/")
            if not (count.isascii() and count.isdigit()) or period not in _PERIODS:
                raise ValueError(f"{_shown(raw)} is not a rate, write it like 10/min ({', '.join(_PERIODS)})")
            if len(count) > 18 or not 1 <= int(count) <= _MAX_RATE:
                raise ValueError(f"{_shown(raw)} is out of range, use 1 to {_MAX_RATE} per {', '.join(_PERIODS)}")
            return Rate(int(count), _PERIODS[period])

        accepted = (*(f"1/{period}" for period in _PERIODS), f"{_MAX_RATE}/day")
        return self._read(
            name, parse(default), parse, Limits(accepted, ("0/min", f"{_MAX_RATE + 1}/day", "10/week", "10", "-1/min"))
        )

    def time_zone(self, name: str, default: str) -> str:
        def parse(raw: str) -> str:
            try:
                ZoneInfo(raw)
            # Paths, directories and files that are not zones raise different errors.
            except (KeyError, OSError, ValueError):
                raise ValueError(f"{_shown(raw)} is not a known time zone, write it like Asia/Seoul") from None
            return raw

        accepted, refused = ("Asia/Seoul", "UTC"), ("Mars/Olympus", "../UTC", "Asia", "x" * 5000)
        return self._read(name, default, parse, Limits(accepted, refused))


def _check_characters(raw: str, *, is_ascii: bool) -> None:
    try:
        raw.encode()
    except UnicodeEncodeError:
        raise ValueError("has bytes that are not UTF-8, remove them") from None
    if any(ord(character) < 32 or 127 <= ord(character) < 160 for character in raw.translate(_LAYOUT)):
        raise ValueError("has a control character, remove it")
    if is_ascii and not (raw.isascii() and raw.isprintable()):
        raise ValueError("has a character that is not printable ASCII; percent-encode it in a URL")


def _shown(raw: str) -> str:
    return repr(raw if len(raw) <= _MAX_SHOWN else f"{raw[:_MAX_SHOWN]}...")


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 65535


def _is_address_if_bracketed(host: str) -> bool:
    if not host.startswith("["):
        return True
    try:
        ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        return False
    return True


def _check_option(key: str, value: object, fixed: frozenset[str], ranges: Mapping[str, tuple[int, int]]) -> None:
    if key in fixed:
        raise ValueError(f"{key} is fixed for safety, remove it")
    if not isinstance(value, str | int | float | bool):
        raise ValueError(f"{key} must be a text, a number or a boolean, change its value")
    text = str(value)
    if not text.strip() or not text.isprintable() or not text.isascii() or len(text) > _MAX_LENGTH:
        raise ValueError(f"{key} must be 1 to {_MAX_LENGTH} printable ASCII characters")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"{key} is too large for 64 bits")
    if key in ranges:
        low, high = ranges[key]
        is_whole = not isinstance(value, bool) and text.removeprefix("-").isdigit() and len(text) <= 18
        if not is_whole or not low <= int(text) <= high:
            raise ValueError(f"{key} is {_shown(text)}, use a whole number from {low} to {high}")


def _redis_url(raw: str) -> str:
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
        if port == 0 or not _SERVER_NAME.fullmatch(host):
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
            raise ValueError(f"has the argument {_shown(name)}; known: {', '.join(sorted(_REDIS_ARGUMENTS))}, ssl_*")
    try:
        # Does not connect: the client only validates its arguments.
        ConnectionPool.from_url(raw).make_connection()
    except Exception:
        raise ValueError(f"has an argument that the Redis client refuses, {example}") from None
    return raw


def _is_redis_database(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9 and int(text) <= _MAX_REDIS_DATABASE


_DATABASE_EXAMPLE = (
    "write it like postgres://user@host:5432/name, or with a socket's folder postgres:///name?host=/run/postgresql"
)
_WHOLE_SECONDS = frozenset({"connect_timeout", "keepalives_idle", "keepalives_interval"})
_SSL_MODES = frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"})


def _database(raw: str) -> dict[str, Any]:
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
    if not all(each.startswith("/") or _SERVER_NAME.fullmatch(each) or _is_ipv6(each) for each in hosts):
        raise ValueError(f"names no server, {_DATABASE_EXAMPLE}")
    if not all(not each or _is_port(each) for each in port.split(",")):
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


def _is_ipv6(host: str) -> bool:
    return _is_address_if_bracketed(f"[{host}]")
