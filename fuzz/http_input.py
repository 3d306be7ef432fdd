"""Hostile HTTP requests as bytes: valid in most parts and wrong in one or two."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import quote
from uuid import UUID

from .mutation import ODD_BYTES, ODD_NUMBERS, ODD_TEXTS, encode, mutated_body, mutated_bytes, odd_value
from .world import World, bearer

_METHODS = (b"GET", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"HEAD", b"TRACE", b"PROPFIND", b"get", b"G\xffT", b"")
_PAGES = ("/", "/admin/login/", "/admin/", "/api/docs", "/api/schema", "/livez", "/readyz", "/metrics", "/static/x.css")
_TYPES = (b"text/plain", b"", b"application/json; charset=utf-16", b"application/x-www-form-urlencoded", b"\xff/\xff")
_ODD_HEADERS: tuple[tuple[bytes, Sequence[bytes]], ...] = (
    (b"host", (b"", b"evil.example", b"localhost:99999", b"[::1", b"a,b", b"\xff", b"localhost@evil")),
    (b"idempotency-key", (b"", b"k", b"x" * 255, b"x" * 256, b"\xff", "쿠폰".encode(), b"\t", b"a,b")),
    (b"traceparent", (b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-00", b"01-x", b"\xff", b"00", b"0" * 5000)),
    (b"content-encoding", (b"gzip", b"deflate, gzip", b"identity", b"\xff")),
    (b"expect", (b"100-continue", b"nonsense")),
    (b"cookie", (b"sessionid=\xff; csrftoken", b"sessionid=" + b"x" * 3000, b"a=b; =; ;;", b"sessionid=\x01")),
    (b"x-forwarded-for", (b"1.2.3.4:80", b"::1", b"x", b"1.2.3.4, " * 500, b"\xff")),
    (b"x-forwarded-proto", (b"https", b"https,http", b"\xff")),
    (b"accept", (b"text/html", b"*/*;q=x", b"\xff", b"application/json," * 500)),
    (b"accept-language", (b"ko", b"x-" * 2000, b"\xff")),
    (b"if-modified-since", (b"Sun, 06 Nov 9999 25:61:61 GMT", b"x")),
    (b"range", (b"bytes=0-0", b"bytes=9999999999999999999999-", b"x")),
    (b"x-csrftoken", (b"x", b"\xff" * 64)),
    (b"origin", (b"null", b"https://evil.example")),
    (b"referer", (b"http://[", b"\xff")),
    (b"upgrade", (b"h2c", b"websocket")),
    (b"x_underscore", (b"1",)),
    (b"x-large", (b"x" * 7000, b"x" * 70_000)),
    (b"\xff\xfe", (b"1",)),
    (b"no colon at all", ()),
    (b" folded", (b"1",)),
)


@dataclass(frozen=True, slots=True)
class HostileRequest:
    """The bytes to send. ``is_cut``: the body is shorter than its Content-Length, and the endpoint has side effects.

    ``is_complete``: the request has valid HTTP framing, so that there must be an answer.
    """

    data: bytes
    is_cut: bool
    is_complete: bool


class _Template:
    """Method, path and body of a valid request, before mutation and framing."""

    def __init__(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        self.method = method.encode()
        self.path = path
        self.query: dict[str, str] = {}
        self.body = body


def hostile_request(random: Random, world: World) -> HostileRequest:
    """Return a random request. In about a third only the values are wrong."""
    user_id = world.any_user(random)
    template = _template(random, world, user_id)
    target = _target(template, random)
    body = _body(template, random)
    headers = [
        (b"host", b"127.0.0.1"),
        (b"authorization", _authorization(random, user_id)),
        (b"content-type", b"application/json" if random.random() < 0.9 else random.choice(_TYPES)),
    ]
    odd = random.random() < 0.4
    if odd:
        headers = _with_odd_headers(headers, random)
        if random.random() < 0.1:
            body = zlib.compress(body)
    method = template.method if random.random() < 0.9 else random.choice(_METHODS)
    return _framed(method, target, headers, body, random, is_plain=not odd and method == template.method)


def _template(random: Random, world: World, user_id: int) -> _Template:
    coupon = random.choice(world.coupons)
    order_id = _known(world.order_ids, random, 1)
    request_id = _known(world.request_ids, random, UUID(int=random.getrandbits(128)))
    item = {"productId": random.choice(world.products).pk, "quantity": random.randint(1, 3)}
    order: dict[str, Any] = {"items": [item] * random.choice([1, 1, 2])}
    if random.random() < 0.3:
        order["userCouponId"] = _known(world.user_coupon_ids, random, 1)
    login = {"username": random.choice(["alice", *ODD_TEXTS]), "password": random.choice(ODD_TEXTS)}
    lines = [
        _Template("POST", "/api/v1/coupons/issue-async", {"couponType": coupon.coupon_type, "userId": user_id}),
        _Template("POST", "/coupons/issue-async", {"couponType": coupon.coupon_type}),
        _Template("POST", f"/api/v1/coupons/{coupon.pk}/issue-async", {"userId": user_id}),
        _Template("POST", f"/coupons/{coupon.pk}/issue-async", {}),
        _Template("POST", f"/api/v1/users/{user_id}/coupons/{coupon.pk}/issue", {}),
        _Template("GET", f"/api/v1/issue-requests/{request_id}"),
        _Template("GET", "/api/v1/coupons"),
        _Template("GET", f"/api/v1/coupons/{coupon.pk}"),
        _Template("GET", f"/api/v1/users/{user_id}/coupons"),
        _Template("POST", "/api/v1/orders", order),
        _Template("POST", "/api/v1/orders", order),
        _Template("GET", f"/api/v1/orders/{order_id}"),
        _Template("POST", f"/api/v1/orders/{order_id}/pay", {}),
        _Template("POST", f"/api/v1/orders/{order_id}/cancel", {}),
        _Template("GET", "/api/v1/rankings/best-sellers"),
        _Template("POST", "/api/v1/auth/token", login),
        _Template("POST", "/api/v1/auth/token/refresh", {"refresh": "x.y.z"}),
    ]
    # Pages are rare: one costs as much as a hundred API calls.
    return _Template("GET", random.choice(_PAGES)) if random.random() < 0.03 else random.choice(lines)


def _known(ids: Any, random: Random, default: Any) -> Any:
    known = list(ids)
    return random.choice(known) if known else default


def _target(template: _Template, random: Random) -> bytes:
    path = template.path
    if random.random() < 0.25:
        segments = path.split("/")
        index = random.randrange(len(segments))
        match random.randrange(5):
            case 0:
                segments[index] = quote(random.choice(ODD_TEXTS), errors="surrogatepass")
            case 1:
                segments[index] = str(random.choice(ODD_NUMBERS))
            case 2:
                segments.insert(index, random.choice(["", ".", "..", "%2e%2e", "%ff", "%00", ";", "%"]))
            case 3:
                segments[index] = segments[index].upper() + random.choice(["", "/", "%20", "%0d%0a", ".json"])
            case _:
                segments.append("x" * random.choice([1, 300, 9000]))
        path = "/".join(segments)
    query = [f"{name}={value}" for name, value in _query(random)] if random.random() < 0.5 else []
    target = path + ("?" + "&".join(query) if query else "")
    if random.random() < 0.02:
        target = random.choice(["*", "", "//evil/x", "http://127.0.0.1" + path, "?" * 300, path + "#x", path + " x"])
    data = target.encode("utf-8", "surrogatepass")
    return mutated_bytes(data, random)[:60_000] if random.random() < 0.03 else data


def _query(random: Random) -> list[tuple[str, str]]:
    names = ["limit", "cursor", "days", "format", "userId", "\u3000", "limit"]
    return [(quote(random.choice(names)), _query_value(random)) for _ in range(random.randint(1, 3))]


def _query_value(random: Random) -> str:
    match random.randrange(4):
        case 0:
            return quote(random.choice(ODD_TEXTS), errors="surrogatepass")
        case 1:
            return str(random.choice(ODD_NUMBERS))
        case 2:
            cursor = random.choice(["p=", "r=1&p=", "o=", "o=1&r=1&p=", ""]) + random.choice(
                ["0", "-1", "1e9", "nan", "0" * 4301, "9" * 30, "x", "\0", "\u0663"]
            )
            return quote(base64.b64encode(cursor.encode()).decode())
        case _:
            return str(random.randint(1, 50))


def _body(template: _Template, random: Random) -> bytes:
    if template.body is None:
        return b"" if random.random() < 0.9 else b"{}"
    match random.randrange(10):
        case 0 | 1 | 2 | 3:
            return encode(template.body, random)
        case 4 | 5 | 6 | 7:
            return mutated_body(template.body, random)
        case 8:
            return random.choice([*ODD_BYTES, b"{" * 9000, b"null", b"[]", b" " * 16_385, b'{"a":' * 3000])
        case _:
            return encode(odd_value(random), random)


def _authorization(random: Random, user_id: int) -> bytes:
    if random.random() < 0.85:
        return bearer(user_id, for_others=random.random() < 0.2)
    good = bearer(user_id)
    return random.choice(
        [
            b"",
            b"Bearer",
            b"Basic YTpi",
            good[:-3],
            good.replace(b".", b"", 1),
            good + b"\xff",
            good.lower(),
            mutated_bytes(good, random).replace(b"\n", b"").replace(b"\r", b""),
            b"Bearer " + base64.urlsafe_b64encode(json.dumps({"alg": "none"}).encode()) + b".e30.",
        ]
    )


def _with_odd_headers(headers: list[tuple[bytes, bytes]], random: Random) -> list[tuple[bytes, bytes]]:
    for _ in range(random.randint(1, 4)):
        name, values = random.choice(_ODD_HEADERS)
        value = random.choice(values) if values else b""
        if random.random() < 0.3:
            headers = [header for header in headers if header[0] != name]
        headers.insert(random.randint(0, len(headers)), (name, value))
    if random.random() < 0.1:
        headers *= random.choice([2, 60])
    return headers


def _framed(
    method: bytes,
    target: bytes,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    random: Random,
    *,
    is_plain: bool,
) -> HostileRequest:
    version, end, framing = b"HTTP/1.1", b"\r\n", [(b"content-length", b"%d" % len(body))]
    is_cut = is_complete = False
    match random.randrange(20):
        case 0:
            framing = [(b"content-length", b"%d" % (len(body) + random.choice([1, 10, 16_000])))]
            is_cut = method == b"POST" and target.startswith((b"/api/v1/", b"/coupons/"))
        case 1:
            framing = [(b"content-length", b"%d" % (len(body) // 2))]
        case 2:
            framing = [(b"content-length", random.choice([b"-1", b"x", b"+2", b"1, 2", b"9" * 30, b"", b"0x2"]))]
        case 3:
            framing = [*framing, (b"content-length", b"1")]
        case 4:
            framing, body = [(b"transfer-encoding", b"chunked")], _chunked(body, random)
            is_complete = is_plain
        case 5:
            framing = [(b"transfer-encoding", b"chunked"), *framing]
            body = mutated_bytes(_chunked(body, random), random)
        case 6:
            framing = [(b"transfer-encoding", random.choice([b"gzip, chunked", b"identity", b"chunked, chunked"]))]
        case 7:
            framing = []
        case 8:
            version = random.choice([b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.1 ", b"http/1.1", b""])
        case 9:
            end = b"\n"
        case _:
            is_complete = is_plain and b"\n" not in target and b" " not in target and len(target) < 4000
    lines = [b" ".join([method, target, version])]
    lines += [name + (b": " + value if value or b" " not in name else b"") for name, value in headers]
    lines += [b"%s: %s" % header for header in [*framing, (b"connection", b"close")]]
    data = end.join([*lines, b"", b""]) + body
    if random.random() < 0.03:
        data, is_cut, is_complete = mutated_bytes(data, random), False, False
    return HostileRequest(data, is_cut, is_complete)


def _chunked(body: bytes, random: Random) -> bytes:
    middle = random.randint(0, len(body))
    parts = [part for part in (body[:middle], body[middle:]) if part]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
