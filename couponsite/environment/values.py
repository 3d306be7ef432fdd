"""Shared by the parsers of settings: limits, rates, and checks of characters, ports and addresses."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

MAX_LENGTH = 4096
# Longer values are truncated in error messages.
_MAX_SHOWN = 40
# Whitespace that JSON values may contain.
_LAYOUT = str.maketrans("", "", "\n\r\t")
# A host name or an IPv6 address in brackets, without a port.
SERVER_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[A-Fa-f0-9:.]+\]")


class Rate(NamedTuple):
    """At most ``limit`` in any window of ``seconds``."""

    limit: int
    seconds: int


class Limits(NamedTuple):
    """Test values of a setting: accepted ones at its limits, and refused ones just past them."""

    accepted: tuple[str, ...]
    refused: tuple[str, ...]


def check_characters(raw: str, *, is_ascii: bool) -> None:
    try:
        raw.encode()
    except UnicodeEncodeError:
        raise ValueError("has bytes that are not UTF-8, remove them") from None
    if any(ord(character) < 32 or 127 <= ord(character) < 160 for character in raw.translate(_LAYOUT)):
        raise ValueError("has a control character, remove it")
    if is_ascii and not (raw.isascii() and raw.isprintable()):
        raise ValueError("has a character that is not printable ASCII (in a URL, percent-encode it)")


def shown(raw: str) -> str:
    return repr(raw if len(raw) <= _MAX_SHOWN else f"{raw[:_MAX_SHOWN]}...")


def is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 65535


def is_address_if_bracketed(host: str) -> bool:
    if not host.startswith("["):
        return True
    try:
        ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        return False
    return True
