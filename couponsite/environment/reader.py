"""Typed access to environment variables: every error names the variable and says what to do."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from django.core.exceptions import ImproperlyConfigured

from common.api import strict_json
from common.bigint import MAX_BIGINT

from . import addresses, stores
from .values import MAX_LENGTH, Limits, Rate, check_characters, shown

T = TypeVar("T")

_FLAGS = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}
_PERIODS = {"second": 1, "min": 60, "hour": 3600, "day": 86400}

_MAX_RATE = 1_000_000


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
            check_characters(raw, is_ascii=is_ascii)
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
                raise ValueError(f"{shown(raw)} is not {description}, correct it")
            return raw

        return self._read(name, default, parse, limits)

    def secret(self, name: str, default: str | None = None, *, at_least: int) -> str:
        """Read a text of ``at_least`` bytes of UTF-8."""

        def parse(raw: str) -> str:
            size = len(raw.encode())
            if size < at_least:
                raise ValueError(f"is shorter than {at_least} bytes, make one with `openssl rand -hex 32`")
            if size > MAX_LENGTH:
                raise ValueError(f"is longer than {MAX_LENGTH} bytes, make one with `openssl rand -hex 32`")
            return raw

        limits = Limits(("s" * at_least, "s" * MAX_LENGTH), ("s" * (MAX_LENGTH + 1), "s" * at_least + "\x01"))
        if at_least > 1:
            limits = Limits(limits.accepted, ("s" * (at_least - 1), *limits.refused))
        return self._read(name, default, parse, limits, is_ascii=False)

    def flag(self, name: str, default: bool) -> bool:
        def parse(raw: str) -> bool:
            if raw not in _FLAGS:
                raise ValueError(f"{shown(raw)} is not a boolean, use one of {', '.join(_FLAGS)}")
            return _FLAGS[raw]

        return self._read(name, default, parse, Limits(tuple(_FLAGS), ("yes", "2", "TRUE")))

    def integer(self, name: str, default: int, *, minimum: int, maximum: int) -> int:
        """Read an integer from ``minimum`` to ``maximum``."""

        def parse(raw: str) -> int:
            if not (raw.isascii() and raw.removeprefix("-").isdigit()):
                raise ValueError(f"{shown(raw)} is not a whole number, write it in decimal digits")
            if len(raw) > 18 or not minimum <= int(raw) <= maximum:
                raise ValueError(f"{shown(raw)} is out of range, use {minimum} to {maximum}")
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
                raise ValueError(f"{shown(raw)} is not a number, write it like 1.5") from None
            if not minimum <= value <= maximum:
                raise ValueError(f"{shown(raw)} is out of range, use {minimum:g} to {maximum:g}")
            return value

        past = (f"{math.nextafter(minimum, -math.inf)!r}", f"{math.nextafter(maximum, math.inf)!r}", "nan", "inf")
        return self._read(name, default, parse, Limits((f"{minimum!r}", f"{maximum!r}"), past))

    def hosts(self, name: str, default: list[str]) -> list[str]:
        """Read a comma-separated list of host names without scheme and port; ``.example.com`` includes subdomains."""
        return self._read(name, default, addresses.parse_hosts, addresses.HOSTS)

    def origins(self, name: str) -> list[str]:
        """Read a comma-separated list of origins as browsers send them, scheme included; empty when unset."""
        return self._read(name, [], addresses.parse_origins, addresses.ORIGINS)

    def json_overlay(self, name: str, apply: Callable[[object], T], *, limits: Limits) -> T:
        """Return ``apply`` of the JSON object in the variable (``{}`` when unset).

        A ValueError from ``apply`` becomes the error.
        """

        def parse(raw: str) -> T:
            try:
                changes = strict_json.decode(raw.encode())
            except ValueError:
                raise ValueError("is not valid JSON, check the quotes and duplicate names") from None
            return apply(changes)

        limits = Limits(limits.accepted, (*limits.refused, "{", "[]", "1", '{"a": NaN}', "[" * 100))
        return self._read(name, apply({}), parse, limits, is_ascii=False)

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
                    raise ValueError(f"unknown name {shown(key)}; known: {', '.join(default)}")
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
        self,
        name: str,
        *,
        fixed: frozenset[str],
        ranges: Mapping[str, tuple[int, int]],
        renamed: Mapping[str, str] = {},
        elsewhere: Mapping[str, str] = {},
    ) -> dict[str, str | int | float | bool]:
        """Read librdkafka properties from a JSON object.

        Properties in ``fixed`` protect the guarantees and are refused; those in ``ranges`` must be whole numbers from
        the first to the second limit, because librdkafka accepts values that the service cannot work with. Names of
        other clients are translated (``renamed``) or refused with what to do instead (``elsewhere``).
        """

        def check(options: object) -> dict[str, str | int | float | bool]:
            if not isinstance(options, dict):
                raise ValueError('is not a JSON object, write {"property": value}')
            for key, reason in elsewhere.items():
                if key in options:
                    raise ValueError(f"{key} is no property of this client: {reason}")
            if twice := next((key for key, own in renamed.items() if key in options and own in options), None):
                raise ValueError(f"{twice} and {renamed[twice]} mean the same, keep the second")
            translated = {renamed.get(key, key): value for key, value in options.items()}
            for key, value in translated.items():
                _check_option(key, value, fixed, ranges)
            return translated

        return self.json_overlay(
            name,
            check,
            limits=Limits(
                tuple(json.dumps({key: limit}) for key, both in ranges.items() for limit in both),
                (
                    *(json.dumps({key: 1}) for key in (*sorted(fixed), *elsewhere)),
                    *(json.dumps({key: 1, own: 1}) for key, own in renamed.items()),
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
        return self._read(name, default, addresses.parse_url, addresses.URL)

    def redis(self, name: str, default: str | None) -> str:
        """Read the URL of a Redis server: ``redis://host:port/0``, ``rediss://`` with TLS, ``unix:///socket?db=0``."""
        return self._read(name, default, stores.parse_redis, stores.REDIS)

    def database(self, name: str, default: str | None) -> dict[str, Any]:
        """Read a PostgreSQL URL as Django's database settings; libpq parses it, query arguments are its options."""
        return self._read(
            name, stores.parse_database(default) if default else None, stores.parse_database, stores.DATABASE
        )

    def servers(self, name: str, default: str | None) -> str:
        """Read a comma-separated list of ``host:port``."""
        return self._read(name, default, addresses.parse_servers, addresses.SERVERS)

    def address(self, name: str, default: str) -> str:
        """Read an IP address to listen on; the servers do not resolve names."""
        return self._read(name, default, addresses.parse_ip_address, addresses.IP_ADDRESS)

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
                raise ValueError(f"{shown(raw)} is not a rate, write it like 10/min ({', '.join(_PERIODS)})")
            if len(count) > 18 or not 1 <= int(count) <= _MAX_RATE:
                raise ValueError(f"{shown(raw)} is out of range, use 1 to {_MAX_RATE} per {', '.join(_PERIODS)}")
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
                raise ValueError(f"{shown(raw)} is not a known time zone, write it like Asia/Seoul") from None
            return raw

        accepted, refused = ("Asia/Seoul", "UTC"), ("Mars/Olympus", "../UTC", "Asia", "x" * 5000)
        return self._read(name, default, parse, Limits(accepted, refused))


def _check_option(key: str, value: object, fixed: frozenset[str], ranges: Mapping[str, tuple[int, int]]) -> None:
    if key in fixed:
        raise ValueError(f"{key} is fixed for safety, remove it")
    if not isinstance(value, str | int | float | bool):
        raise ValueError(f"{key} must be a text, a number or a boolean, change its value")
    text = str(value)
    if not text.strip() or not text.isprintable() or not text.isascii() or len(text) > MAX_LENGTH:
        raise ValueError(f"{key} must be 1 to {MAX_LENGTH} printable ASCII characters")
    if isinstance(value, int) and abs(value) > MAX_BIGINT:
        raise ValueError(f"{key} is too large for 64 bits")
    if key in ranges:
        low, high = ranges[key]
        is_whole = not isinstance(value, bool) and text.removeprefix("-").isdigit() and len(text) <= 18
        if not is_whole or not low <= int(text) <= high:
            raise ValueError(f"{key} is {shown(text)}, use a whole number from {low} to {high}")
