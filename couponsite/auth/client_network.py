"""The client address that throttling counts against."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network

from django.conf import settings
from django.http import HttpRequest


def client_network(request: HttpRequest) -> str:
    """Return the client's IPv4 address, or the /64 of its IPv6 address, the smallest block assigned to one client.

    Trusted proxies wrote the last ``TRUSTED_PROXY_COUNT`` entries of X-Forwarded-For; the entries before them can be
    forged. If the entry is not an address, the address of the connection is used.
    """
    peer = _network(request.META.get("REMOTE_ADDR", ""))
    proxies: int = settings.TRUSTED_PROXY_COUNT
    forwarded: str = request.META.get("HTTP_X_FORWARDED_FOR", "")
    if not proxies or not forwarded:
        return peer
    entries = forwarded.split(",")
    return _network(entries[-min(proxies, len(entries))]) or peer


def _network(text: str) -> str:
    """Return the network of an address, which may be quoted and have a port (``[2001:db8::1]:80``); else ``""``."""
    host = text.strip().strip('"').strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped or ip_network((address, 64), strict=False))
    return str(address)
