"""The lane answers like the site: the same request gets the same status, headers and body from both."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import jwt
import pytest
from django.conf import settings
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from coupons.models import Coupon
from couponsite.auth.tokens import ISSUE_FOR_OTHERS, issue_access_token
from devstack import wait_until
from tests.support.factories import CouponFactory

from .conftest import Answer, Pair

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
FAR_AHEAD = datetime(2120, 1, 1, tzinfo=UTC)
# The users of the lane and of the site: every case runs once for each of them.
LANE_USER, SITE_USER = 7_000_001, 8_000_001

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@dataclass(frozen=True)
class Case:
    """A request. In its parts ``USER`` and ``OTHER`` stand for the user of the side and for a further user.

    Names of coupons stand for types that no other test uses: the processes cache coupons by type.
    """

    method: str = "POST"
    path: str = "/api/v1/coupons/issue-async"
    body: bytes = b""
    # None: no header. ``user``: a plain token; ``others``: with the scope to issue for other users.
    token: str | None = "user"
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)
    length: str | None = "whole"
    host: str = "localhost"

    def message(self, user: int, types: Mapping[str, str]) -> bytes:
        fill = {"USER": str(user), "OTHER": str(user + 1), **types}

        def filled(text: str) -> str:
            return re.sub("|".join(sorted(fill, key=len, reverse=True)), lambda found: fill[found[0]], text)

        lines = [f"{self.method} {filled(self.path)} HTTP/1.1", f"Host: {self.host}", "Connection: close"]
        lines += [f"{name}: {filled(value)}" for name, value in self.headers]
        if self.token is not None:
            lines.append(f"Authorization: {authorization(self.token, user)}")
        body = filled(self.body.decode("latin-1")).encode("latin-1")
        if self.length == "whole":
            lines.append(f"Content-Length: {len(body)}")
        elif self.length == "chunked":
            lines.append("Transfer-Encoding: chunked")
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:3], body[3:]) if part) + b"0\r\n\r\n"
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def authorization(kind: str, user: int) -> str:
    def signed(claims: dict[str, Any]) -> str:
        token = jwt.encode({"exp": int(FAR_AHEAD.timestamp()), **claims}, settings.SECRET_KEY, algorithm="HS256")
        return f"Bearer {token}"

    tokens: dict[str, Callable[[], str]] = {
        "user": lambda: f"Bearer {issue_access_token(user)}",
        "others": lambda: f"Bearer {issue_access_token(user, ISSUE_FOR_OTHERS)}",
        "lower": lambda: f"bearer {issue_access_token(user)}",
        "two spaces": lambda: f"Bearer  {issue_access_token(user)} ",
        "tab": lambda: f"Bearer\t{issue_access_token(user)}",
        "basic": lambda: "Basic dXNlcjpwYXNz",
        "garbage": lambda: "Bearer a.b.c",
        "empty": lambda: "Bearer ",
        "expired": lambda: f"Bearer {issue_access_token(user, lifetime=timedelta(seconds=-60))}",
        "list of scopes": lambda: signed({"user_id": user, "scope": [ISSUE_FOR_OTHERS]}),
        "text user": lambda: signed({"user_id": str(user)}),
        "no user": lambda: signed({"user_id": -1}),
        "refresh": lambda: signed({"user_id": user, "token_type": "refresh", "mark": "x"}),
        "foreign claims": lambda: signed({"user_id": user, "iss": "other", "iat": 1}),
    }
    return tokens[kind]()


def comparable(answer: Answer, user: int) -> tuple[int, dict[str, str], str]:
    """The answer without what differs between any two calls: ids of requests, times, sequence, and the user's id."""

    def general(text: str) -> str:
        for number, name in ((user, "USER"), (user + 1, "OTHER")):
            text = text.replace(str(number), name)
        text = _TIME.sub("TIME", _UUID.sub("UUID", text))
        return re.sub(r'"sequence":\d+', '"sequence":N', text)

    headers = {name: general(value) for name, value in answer.headers.items() if name not in ("date", "connection")}
    return answer.status, headers, general(answer.body.decode("utf-8", "backslashreplace"))


class Sides:
    """Both sides, and the coupons by name."""

    def __init__(self, pair: Pair, coupons: Mapping[str, Coupon]) -> None:
        self.pair = pair
        self.coupons = coupons
        self.types = {"ID": str(coupons["QUEUE"].id), **{name: coupon.coupon_type for name, coupon in coupons.items()}}

    def lane(self, case: Case, user: int = LANE_USER) -> Answer:
        return self.pair.to_lane(case.message(user, self.types), case.method)

    def site(self, case: Case, user: int = SITE_USER) -> Answer:
        return self.pair.to_site(case.message(user, self.types), case.method)

    def alike(self, case: Case) -> Answer:
        """Send the case to both sides, and return the answer of the lane after comparing it."""
        lane, site = self.lane(case), self.site(case)
        assert comparable(lane, LANE_USER) == comparable(site, SITE_USER)
        return lane


@pytest.fixture
def sides(pair: Pair) -> Sides:
    return Sides(pair, make_coupons(secrets.token_hex(4)))


def make_coupons(suffix: str) -> dict[str, Coupon]:
    """A coupon of every admission and state, by name."""
    made = {
        name: CouponFactory.create(coupon_type=f"{name}_{suffix}", total_quantity=100_000, admission=name.lower())
        for name in ("QUEUE", "GATE", "RESERVE")
    }
    states: dict[str, dict[str, Any]] = {
        "SOLD_OUT_GATE": {"admission": "gate", "total_quantity": 0},
        "SOLD_OUT_RESERVE": {"admission": "reserve", "total_quantity": 0},
        "SCHEDULED": {"opens_at": FAR_AHEAD},
        "CLOSED": {"opens_at": LONG_AGO, "closes_at": LONG_AGO + timedelta(days=1)},
        "PAUSED": {"paused": True},
    }
    for name, values in states.items():
        made[name] = CouponFactory.create(coupon_type=f"{name}_{suffix}", **{"total_quantity": 10, **values})
    for name in ("GATE", "RESERVE"):
        taken = CouponFactory.create(coupon_type=f"TAKEN_{name}_{suffix}", total_quantity=10, admission=name.lower())
        for user in (LANE_USER, SITE_USER):
            taken.user_coupons.create(user_id=user, issued_at=LONG_AGO)
        Coupon.objects.filter(id=taken.id).update(issued=2)
        made[f"TAKEN_{name}"] = taken
    return made


NAMES = (
    "QUEUE", "GATE", "RESERVE", "SOLD_OUT_GATE", "SOLD_OUT_RESERVE", "SCHEDULED", "CLOSED", "PAUSED", "TAKEN_GATE",
    "TAKEN_RESERVE",
)  # fmt: skip


def by_type(coupon_type: str, **changes: Any) -> Case:
    return replace(Case(body=b'{"couponType":"' + coupon_type.encode() + b'"}'), **changes)


def contract_cases(coupons: Mapping[str, Coupon]) -> Iterator[Case]:
    """Every case of the contract that the lane has: each path, admission, state and refusal."""
    for name in NAMES:
        number = coupons[name].id
        yield by_type(name)
        yield by_type(name, path="/coupons/issue-async")
        yield Case(path=f"/api/v1/coupons/{number}/issue-async", body=b"{}")
        yield Case(path=f"/coupons/{number}/issue-async")
        yield Case(path=f"/api/v1/users/USER/coupons/{number}/issue", body=b"{}")
        yield Case("GET", path=f"/api/v1/coupons/{number}", headers=(), length=None)
    queue = coupons["QUEUE"].id
    yield by_type("NO_SUCH_COUPON")
    yield Case(path="/api/v1/coupons/999999999/issue-async", body=b"{}")
    yield Case(body=b'{"couponType":"QUEUE","userId":OTHER}')
    yield Case(body=b'{"couponType":"QUEUE","userId":OTHER}', token="others")
    yield Case(path=f"/api/v1/coupons/{queue}/issue-async", body=b'{"userId":OTHER}')
    yield Case(path=f"/api/v1/coupons/{queue}/issue-async", body=b'{"userId":OTHER}', token="others")
    yield Case(path=f"/api/v1/users/OTHER/coupons/{queue}/issue", body=b"{}")
    yield Case(path=f"/api/v1/users/OTHER/coupons/{queue}/issue", body=b"{}", token="others")
    yield Case("GET", path="/api/v1/coupons", headers=(), length=None)
    yield Case("GET", path="/api/v1/coupons/999999999", headers=(), length=None)
    yield Case("GET", path="/api/v1/issue-requests/00000000-0000-0000-0000-000000000000", headers=(), length=None)
    for path in ("/livez", "/readyz"):
        for method in ("GET", "HEAD", "POST"):
            yield Case(method, path=path, headers=(), length=None, token=None)


def test_every_case_of_the_contract(sides: Sides) -> None:
    statuses = {sides.alike(case).status for case in contract_cases(sides.coupons)}
    assert statuses == {200, 202, 403, 404, 405, 409}


def test_an_idempotency_key_leads_to_the_first_answer(sides: Sides) -> None:
    json_type = ("Content-Type", "application/json")
    for name in ("QUEUE", "GATE", "RESERVE"):
        case = by_type(name, headers=(json_type, ("Idempotency-Key", name)))
        first, again = sides.alike(case), sides.alike(case)
        assert (first.status, again.status, again.body) == (202, 202, first.body)
        # Both sides know the same keys.
        assert sides.site(case, LANE_USER).body == first.body
        assert sides.alike(replace(case, body=b'{"couponType":"CLOSED"}')).status == 422
        Coupon.objects.filter(id=sides.coupons[name].id).update(paused=True)
        is_paused = partial(both_refuse, sides, by_type(name))
        wait_until(is_paused, 5, "the coupon is not paused")
        assert sides.alike(case).body == first.body


def both_refuse(sides: Sides, case: Case) -> bool:
    return sides.lane(case).status == sides.site(case).status == 409


def test_a_status_reads_the_same(sides: Sides) -> None:
    for name in ("QUEUE", "GATE", "RESERVE"):
        for user in (LANE_USER, SITE_USER):
            accepted = json.loads(sides.lane(by_type(name), user).body)
            case = Case("GET", path=f"/api/v1/issue-requests/{accepted['requestId']}", headers=(), length=None)
            for reader in (user, user + 1):
                lane, site = sides.lane(case, reader), sides.site(case, reader)
                assert comparable(lane, reader) == comparable(site, reader)
                assert lane.status == (200 if reader == user else 404)


PATHS = st.sampled_from(
    [
        "/api/v1/coupons/issue-async",
        "/coupons/issue-async",
        "/api/v1/coupons/ID/issue-async",
        "/coupons/ID/issue-async",
        "/api/v1/users/USER/coupons/ID/issue",
        "/api/v1/users/OTHER/coupons/ID/issue",
        "/api/v1/coupons",
        "/api/v1/coupons/ID",
        "/api/v1/coupons?limit=2",
        "/api/v1/coupons?cursor=",
        "/api/v1/coupons?limit=x",
        "/api/v1/coupons/0",
        "/api/v1/coupons/9223372036854775808/issue-async",
        "/api/v1/coupons/00ID/issue-async",
        "/api/v1/coupons/issue-async/",
        "/api/v1//coupons/issue-async",
        "/api/v1/coupons/issue%2Dasync",
        "/api/v1/coupons/%31/issue-async",
        "/api/v1/coupons/issue-async?a=b",
        "/api/v1/issue-requests/00000000-0000-0000-0000-00000000000A",
        "/api/v1/issue-requests/00000000-0000-0000-0000-0000000000",
        "/api/v1/users/0/coupons/ID/issue",
        "/coupons",
        "/coupons/ID",
    ]
)
BODIES = st.sampled_from(
    [
        b"",
        b"{}",
        b" { } ",
        b'{"couponType":"QUEUE"}',
        b'{"couponType":"GATE","userId":USER}',
        b'{ "couponType" : "RESERVE" , "userId" : USER }\n',
        b'{"userId":USER,"couponType":"QUEUE"}',
        b'{"couponType":"SOLD_OUT_GATE"}',
        b'{"couponType":"PAUSED"}',
        b'{"couponType":"NOPE"}',
        b'{"couponType":"QUEUE","couponType":"GATE"}',
        b'{"couponType":"QUEUE","extra":1}',
        b'{"couponType":"\\u0051UEUE"}',
        b'{"couponType":"QU EUE"}',
        b'{"couponType":""}',
        b'{"couponType":null}',
        b'{"couponType":"QUEUE","userId":null}',
        b'{"couponType":"QUEUE","userId":0}',
        b'{"couponType":"QUEUE","userId":USER.0}',
        b'{"couponType":"QUEUE","userId":9223372036854775808}',
        b'{"couponType":"QUEUE","userId":9223372036854775807}',
        b'{"couponType":"QUEUE","userId":0USER}',
        b'{"couponType":"QUEUE","userId":-1}',
        b'{"userId":USER}',
        b'{"userId":OTHER}',
        b"[]",
        b"null",
        b"{",
        b'{"couponType":"QUEUE"} x',
        b"\xef\xbb\xbf{}",
        b"\xff",
        b'{"couponType":"a\x00b"}',
        b"[" * 100,
        b'{"couponType":"' + b"x" * 17_000 + b'"}',
    ]
)
HEADERS = st.lists(
    st.sampled_from(
        [
            ("Content-Type", "application/json"),
            ("Content-Type", "Application/JSON; charset=utf-8"),
            ("Content-Type", "application/json; charset=utf-16"),
            ("Content-Type", "text/plain"),
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Content-Encoding", "gzip"),
            ("Content-Encoding", "identity"),
            ("Idempotency-Key", "k"),
            ("Idempotency-Key", "k" * 256),
            ("Idempotency-Key", "\xe9"),
            ("Idempotency-Key", ""),
            ("Idempotency_Key", "dropped"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("traceparent", "rubbish"),
            ("Accept", "text/html"),
            ("Accept-Language", "ko"),
            ("X-HTTP-Method-Override", "DELETE"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-For", "1.2.3.4"),
            ("X-Intake-Client", "0 1.2.3.4"),
            ("Origin", "https://example.org"),
            ("Cookie", "sessionid=rubbish"),
        ]
    ),
    max_size=4,
)
TOKENS = st.sampled_from(
    [
        "others", None, "lower", "two spaces", "tab", "basic", "garbage", "empty", "expired", "list of scopes",
        "text user", "no user", "refresh", "foreign claims",
    ]
)  # fmt: skip
PLAIN = st.sampled_from(
    [
        *(by_type(name) for name in NAMES),
        Case(path="/api/v1/coupons/ID/issue-async", body=b"{}"),
        Case(path="/api/v1/users/USER/coupons/ID/issue"),
        Case("GET", path="/api/v1/coupons/ID", headers=(), length=None),
        Case("GET", path="/api/v1/coupons", headers=(), length=None),
    ]
)
# One part of a plain request is replaced, or two.
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("method"), st.sampled_from(["POST", "GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])),
        st.tuples(st.just("path"), PATHS),
        st.tuples(st.just("body"), BODIES),
        st.tuples(st.just("token"), TOKENS),
        st.tuples(st.just("headers"), HEADERS.map(tuple)),
        st.tuples(st.just("length"), st.sampled_from(["whole", "chunked"])),
        st.tuples(st.just("host"), st.sampled_from(["127.0.0.1:80", "LOCALHOST", "evil.example", "a b"])),
    ),
    max_size=2,
)
CASES = st.builds(lambda case, changes: replace(case, **dict(changes)), PLAIN, CHANGES)


def test_any_request(sides: Sides) -> None:
    statuses: set[int] = set()

    @hypothesis_settings(
        max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(CASES)
    def check(case: Case) -> None:
        statuses.add(sides.alike(case).status)

    check()
    assert {200, 202, 400, 401, 403, 404, 405, 409, 415} <= statuses
