"""Typed reading of the process environment: every refusal names the variable and says what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import environ  # type: ignore[import-untyped]
from django.core.exceptions import ImproperlyConfigured

from couponsite import strict_json

T = TypeVar("T")

_FLAGS = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}
_PERIODS = {"second": 1, "min": 60, "hour": 3600, "day": 86400}


class Rate(NamedTuple):
    """At most ``limit`` in any window of ``seconds``."""

    limit: int
    seconds: int


class Environment:
    """Reads settings from ``variables``; an empty value counts as unset.

    Every method takes the variable's name and returns the typed value, or ``default`` when it is unset (a
    ``None`` default makes it required). A missing or bad value raises ImproperlyConfigured with one line,
    ``NAME: what is wrong, what to do``; the value itself is never repeated, since it may be a secret.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def _read(self, name: str, default: T | None, parse: Callable[[str], T]) -> T:
        raw = self._variables.get(name, "").strip()
        if not raw:
            if default is None:
                raise ImproperlyConfigured(f"{name}: is not set, give it a value (see .env.example)")
            return default
        try:
            return parse(raw)
        except ValueError as error:
            raise ImproperlyConfigured(f"{name}: {error}") from None

    def text(self, name: str, default: str | None = None) -> str:
        return self._read(name, default, str)

    def matching(self, name: str, default: str, pattern: re.Pattern[str], told: str) -> str:
        """A text that ``pattern`` matches as a whole; ``told`` says what that is."""

        def parse(raw: str) -> str:
            if not pattern.fullmatch(raw):
                raise ValueError(f"is not {told}, correct it")
            return raw

        return self._read(name, default, parse)

    def secret(self, name: str, default: str | None = None, *, at_least: int) -> str:
        """A text of ``at_least`` bytes of UTF-8."""

        def parse(raw: str) -> str:
            if len(raw.encode()) < at_least:
                raise ValueError(f"is shorter than {at_least} bytes, make one with `openssl rand -hex 32`")
            return raw

        return self._read(name, default, parse)

    def flag(self, name: str, default: bool) -> bool:
        def parse(raw: str) -> bool:
            if raw not in _FLAGS:
                raise ValueError(f"is not a boolean, use one of {', '.join(_FLAGS)}")
            return _FLAGS[raw]

        return self._read(name, default, parse)

    def whole(self, name: str, default: int, *, minimum: int = 0, maximum: int | None = None) -> int:
        """A decimal integer from ``minimum`` to ``maximum`` that fits 63 bits."""

        def parse(raw: str) -> int:
            if not (raw.isascii() and raw.removeprefix("-").isdigit() and len(raw) <= 18):
                raise ValueError("is not a whole number, write it in decimal digits")
            if int(raw) < minimum:
                raise ValueError(f"is below {minimum}, use {minimum} or more")
            if maximum is not None and int(raw) > maximum:
                raise ValueError(f"is above {maximum}, use {maximum} or less")
            return int(raw)

        return self._read(name, default, parse)

    def real(self, name: str, default: float, *, minimum: float = 0.0) -> float:
        """A finite decimal number of at least ``minimum``."""

        def parse(raw: str) -> float:
            try:
                value = float(raw)
            except ValueError:
                raise ValueError("is not a number, write it like 1.5") from None
            if not math.isfinite(value) or value < minimum:
                raise ValueError(f"is not a finite number of {minimum:g} or more, write it like 1.5")
            return value

        return self._read(name, default, parse)

    def words(self, name: str, default: Iterable[str]) -> list[str]:
        """A comma-separated list."""
        return self._read(name, list(default), lambda raw: [w.strip() for w in raw.split(",") if w.strip()])

    def origins(self, name: str) -> list[str]:
        """A comma-separated list of origins, scheme included; none when unset."""

        def parse(raw: str) -> list[str]:
            found = [word.strip() for word in raw.split(",") if word.strip()]
            if not all(origin.startswith(("https://", "http://")) for origin in found):
                raise ValueError("is not a list of origins, write it like https://shop.example,https://app.example")
            return found

        return self._read(name, [], parse)

    def json(self, name: str, default: object) -> Any:
        def parse(raw: str) -> object:
            try:
                return strict_json.decode(raw.encode())
            except ValueError:
                raise ValueError("is not valid JSON, mind the quotes and names that stand twice") from None

        return self._read(name, default, parse)

    def overlay(self, name: str, lay_over: Callable[[object], T]) -> T:
        """What ``lay_over`` makes of the JSON object in the variable (``{}`` when unset).

        A ValueError from ``lay_over`` becomes the refusal.
        """
        try:
            return lay_over(self.json(name, {}))
        except ValueError as error:
            raise ImproperlyConfigured(f"{name}: {error}") from None

    def choices(self, name: str, *, default: Mapping[str, str], allowed: tuple[str, ...] = ()) -> dict[str, str]:
        """``default`` with a JSON object of texts laid over it: known names only, and only ``allowed`` values."""

        def lay_over(changes: object) -> dict[str, str]:
            if not isinstance(changes, dict):
                raise ValueError(f'is not a JSON object, write {{"{next(iter(default))}": "..."}}')
            for key, value in changes.items():
                if key not in default:
                    raise ValueError(f"unknown name {key!r}; known: {', '.join(default)}")
                if not isinstance(value, str) or not value or (allowed and value not in allowed):
                    raise ValueError(f"{key} must be {' or '.join(allowed) or 'a text'}")
            return {**default, **changes}

        return self.overlay(name, lay_over)

    def client_options(self, name: str, *, fixed: frozenset[str]) -> dict[str, str | int | float | bool]:
        """librdkafka properties from a JSON object; those in ``fixed`` carry safety and are refused."""

        def check(options: object) -> dict[str, str | int | float | bool]:
            if not isinstance(options, dict):
                raise ValueError('is not a JSON object, write {"property": value}')
            for key, value in options.items():
                if key in fixed:
                    raise ValueError(f"{key} is fixed for safety, take it out")
                if not isinstance(value, str | int | float | bool):
                    raise ValueError(f"{key} must be a text, a number or a boolean, change its value")
            return options

        return self.overlay(name, check)

    def url(self, name: str, default: str | None, *, schemes: tuple[str, ...]) -> str:
        def parse(raw: str) -> str:
            wanted = " or ".join(f"{scheme}://" for scheme in schemes)
            try:
                parts = urlsplit(raw)
                port = parts.port
            except ValueError:
                raise ValueError(f"is not a URL, write it like {schemes[0]}://host:port/name") from None
            if parts.scheme not in schemes:
                raise ValueError(f"does not start with {wanted}, correct it")
            if port == 0 or not (parts.netloc or parts.path):
                raise ValueError(f"names no server, write it like {schemes[0]}://host:port/name")
            return raw

        return self._read(name, default, parse)

    def database(self, name: str, default: str | None) -> dict[str, Any]:
        """Django's settings of a PostgreSQL database from its URL; query arguments become libpq options."""
        url = self.url(name, default, schemes=("postgres", "postgresql"))
        try:
            config: dict[str, Any] = dict(environ.Env.db_url_config(url))
        except (ValueError, ImproperlyConfigured):
            config = {}
        if not config.get("NAME"):
            raise ImproperlyConfigured(f"{name}: names no database, write it like postgres://user@host:5432/name")
        return config

    def servers(self, name: str, default: str | None) -> str:
        """A comma-separated list of ``host:port``."""

        def parse(raw: str) -> str:
            for server in raw.split(","):
                host, _, port = server.strip().rpartition(":")
                if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
                    raise ValueError("is not a list of host:port, write it like kafka1:9092,kafka2:9092")
            return raw

        return self._read(name, default, parse)

    def rate(self, name: str, default: str) -> Rate:
        """So many per second, minute, hour or day, as in ``10/min``."""

        def parse(raw: str) -> Rate:
            count, _, period = raw.partition("/")
            if not (count.isascii() and count.isdigit() and len(count) <= 9 and int(count)) or period not in _PERIODS:
                raise ValueError(f"is not a rate, write it like 10/min ({', '.join(_PERIODS)})")
            return Rate(int(count), _PERIODS[period])

        return self._read(name, parse(default), parse)

    def time_zone(self, name: str, default: str) -> str:
        def parse(raw: str) -> str:
            try:
                ZoneInfo(raw)
            # An absolute or relative path, a directory and a file that is no zone each fail in their own way.
            except (KeyError, OSError, ValueError):
                raise ValueError("is not a known time zone, write it like Asia/Seoul") from None
            return raw

        return self._read(name, default, parse)
