"""Parsers of settings that name hosts: ``parse_x`` returns the value or raises ValueError, ``X`` holds its limits."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from .values import MAX_LENGTH, SERVER_NAME, Limits, is_address_if_bracketed, is_port, shown

# Valid Host headers (django.http.request.host_validation_re), without a port.
_HOST = re.compile(r"\.?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[A-Fa-f0-9:.]+\]|\*")
# An origin as browsers send it: lower case, no path, no default port.
_ORIGIN = re.compile(r"(https?)://((?:\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[a-f0-9:.]+\])(?::([1-9][0-9]{0,4}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}

HOSTS = Limits(
    ("shop.example", "*", ".shop.example, 127.0.0.1,[::1]"),
    ("https://shop.example", "shop.example:8000", "shop.example/", "::1", "[::1]:80", "[1::2::3]", "a b"),
)


def parse_hosts(raw: str) -> list[str]:
    """Parse a comma-separated list of host names without scheme and port."""
    found = [word.strip() for word in raw.split(",") if word.strip()]
    for host in found:
        if not _HOST.fullmatch(host) or not is_address_if_bracketed(host):
            raise ValueError(
                f"{shown(host)} is not a host name: no scheme, port or path, IPv6 in brackets; write it like"
                " shop.example,.shop.example,[::1]"
            )
    return found


ORIGINS = Limits(
    ("https://shop.example", "http://[::1]:8000,https://*.shop.example:65535"),
    (
        "shop.example", "https://shop.example/", "https://Shop.example", "HTTPS://shop.example",
        "https://shop.example:443", "http://shop.example:80", "https://shop.example:65536", "https://u@h",
        "https://[1::2::3]",
    ),
)  # fmt: skip


def parse_origins(raw: str) -> list[str]:
    """Parse a comma-separated list of origins as browsers send them."""
    found = [word.strip() for word in raw.split(",") if word.strip()]
    for origin in found:
        match = _ORIGIN.fullmatch(origin)
        port = match and match[4]
        if (
            match is None
            or not is_address_if_bracketed(match[2])
            or port == _DEFAULT_PORTS[match[1]]
            or int(port or 0) > 65535
        ):
            raise ValueError(
                f"{shown(origin)} is not an origin: lower case, no path, no slash at the end, no default"
                " port; write it like https://shop.example,https://app.example:8443"
            )
    return found


URL = Limits(
    ("http://h", "https://shop.example:65535/path?key=value", "http://[::1]:1/", "http://h/".ljust(4096, "x")),
    (
        "h", "ftp://h", "https://", "https://:80", "https://h:0", "https://h:65536", "https://h:x", "https://[h",
        "https://h/#x", "https://h/a b", "https://h\u00e9", "http://h/".ljust(4097, "x"), "http://h/\x07",
    ),
)  # fmt: skip


def parse_url(raw: str) -> str:
    """Check the URL of an HTTP service."""
    if len(raw) > MAX_LENGTH:
        raise ValueError(f"is longer than {MAX_LENGTH} characters, shorten it")
    try:
        parts = urlsplit(raw)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise ValueError("is not a URL, write it like https://host:port/path") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("does not start with https:// or http://, correct it")
    bracketed = f"[{host}]" if host and ":" in host else host or ""
    if port == 0 or not SERVER_NAME.fullmatch(bracketed):
        raise ValueError("names no server, write it like https://host:port/path")
    if " " in raw or parts.fragment:
        raise ValueError("has a blank or a fragment (#...), write it like https://host:port/path")
    return raw


SERVERS = Limits(
    ("h:1", "h:65535", "kafka-1.example:9092, [::1]:9092"),
    ("h", "h:", ":9092", "h:0", "h:65536", "a:1,,b:2", "PLAINTEXT://h:1", "a b:1", "::1:9092", "h:1/"),
)


def parse_servers(raw: str) -> str:
    """Parse a comma-separated list of ``host:port``."""
    servers = [server.strip() for server in raw.split(",")]
    for server in servers:
        host, _, port = server.rpartition(":")
        if not SERVER_NAME.fullmatch(host) or not is_address_if_bracketed(host) or not is_port(port):
            raise ValueError("is not a list of host:port, write it like kafka1:9092,kafka2:9092")
    return ",".join(servers)


IP_ADDRESS = Limits(
    ("0.0.0.0", "127.0.0.1", "::", "::1"), ("nonsense", "localhost", "[::1]", "256.0.0.1", "127.0.0.1:80", "0.0.0.0/0")
)


def parse_ip_address(raw: str) -> str:
    """Check an IP address."""
    try:
        ipaddress.ip_address(raw)
    except ValueError:
        raise ValueError(
            f"{shown(raw)} is not an IP address, use 0.0.0.0 for every interface, :: to include IPv6"
        ) from None
    return raw
