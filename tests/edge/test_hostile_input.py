"""What a hostile client can send to a coupon endpoint: always a problem, never a 500 and never a coupon."""

from __future__ import annotations

import base64
import gzip
import json
import time
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from django.conf import settings
from django.test import Client
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from coupons.models import Coupon
from couponsite.auth.tokens import issue_access_token
from kafka_bridge.models import OutboxMessage

from .conftest import ALICE, BOB, Call, assert_problem

ENDPOINTS = ["/api/v1/coupons/issue-async", "/coupons/issue-async"]
ENDPOINT = ENDPOINTS[0]
TOKEN = "/api/v1/auth/token"
FORM = "application/x-www-form-urlencoded"


def nested(depth: int) -> bytes:
    return b'{"couponType":' + b"[" * depth + b"]" * depth + b"}"


BAD_BODIES = {
    "not JSON": b"couponType=SUMMER",
    "cut off": b'{"couponType":"SUM',
    "something behind the value": b'{"couponType":"SUMMER"} {}',
    "comment": b'{"couponType":"SUMMER"} // please',
    "single quotes": b"{'couponType':'SUMMER'}",
    "byte order mark": b'\xef\xbb\xbf{"couponType":"SUMMER"}',
    "UTF-16": '{"couponType":"SUMMER"}'.encode("utf-16"),
    "not UTF-8": b'{"couponType":"\xff"}',
    "overlong UTF-8": b'{"couponType":"\xc0\x80"}',
    "surrogate in UTF-8": b'{"couponType":"\xed\xa0\x80"}',
    "raw control character": b'{"couponType":"SUM\x01MER"}',
    "raw NUL": b'{"couponType":"SUM\x00MER"}',
    "NUL behind the value": b'{"couponType":"SUMMER"}\x00',
    "escaped NUL": rb'{"couponType":"SUM\u0000MER"}',
    "escaped NUL in a name": rb'{"couponType\u0000":"SUMMER"}',
    "lone high surrogate": rb'{"couponType":"\ud83d"}',
    "lone low surrogate": rb'{"couponType":"\ude00"}',
    "swapped surrogates": rb'{"couponType":"\ude00\ud83d"}',
    "lone surrogate in a name": rb'{"couponType":"SUMMER","\ud800":1}',
    "duplicate name": b'{"couponType":"SUMMER","couponType":"SUMMER"}',
    "duplicate name in another spelling": rb'{"couponType":"SUMMER","coupon\u0054ype":"SUMMER"}',
    "duplicate name further in": b'{"couponType":{"a":1,"a":2}}',
    "NaN": b'{"couponType":"SUMMER","userId":NaN}',
    "Infinity": b'{"couponType":"SUMMER","userId":-Infinity}',
    "float that overflows": b'{"couponType":"SUMMER","userId":1e999}',
    "integer past 64 bits": b'{"couponType":"SUMMER","userId":9223372036854775808}',
    "integer of 5000 digits": b'{"couponType":"SUMMER","userId":' + b"9" * 5000 + b"}",
    "nesting past 32": nested(32),
    "nesting past the stack": nested(8000),
    "nesting that never closes": b"[" * 16000,
    "text instead of an object": b'"SUMMER"',
    "list instead of an object": b'[{"couponType":"SUMMER"}]',
    "null instead of an object": b"null",
    "only white space": b"  \n",
    "nothing at all": b"",
    "no coupon type": b"{}",
    "unknown field": b'{"couponType":"SUMMER","quantity":2}',
    "snake case": b'{"coupon_type":"SUMMER"}',
    "coupon type null": b'{"couponType":null}',
    "coupon type a number": b'{"couponType":5}',
    "coupon type a list": b'{"couponType":["SUMMER"]}',
    "coupon type empty": b'{"couponType":""}',
    "coupon type too long": b'{"couponType":"' + b"A" * 65 + b'"}',
    "coupon type with a space": b'{"couponType":"SUM MER"}',
    "coupon type with a line end": rb'{"couponType":"SUMMER\n"}',
    "coupon type in other letters": '{"couponType":"\uff33UMMER"}'.encode(),
    "user id a text": b'{"couponType":"SUMMER","userId":"1001"}',
    "user id a boolean": b'{"couponType":"SUMMER","userId":true}',
    "user id a float": b'{"couponType":"SUMMER","userId":1001.0}',
    "user id null": b'{"couponType":"SUMMER","userId":null}',
    "user id 0": b'{"couponType":"SUMMER","userId":0}',
    "user id below 0": b'{"couponType":"SUMMER","userId":-1}',
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_bad_body_is_refused(coupon: Coupon, call: Call, endpoint: str, body: bytes) -> None:
    assert_problem(call("POST", endpoint, body), 400, "invalid")
    assert not OutboxMessage.objects.exists()


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_same_endpoint_lets_a_good_body_in(coupon: Coupon, call: Call, endpoint: str) -> None:
    response = call("POST", endpoint, {"couponType": "SUMMER", "userId": ALICE})
    assert (response.status_code, response["Content-Type"]) == (202, "application/json")
    assert OutboxMessage.objects.count() == 1


def test_a_refusal_names_the_field(coupon: Coupon, call: Call) -> None:
    wrong_type = assert_problem(call("POST", ENDPOINT, {"couponType": 5}), 400, "invalid")
    assert [error["field"] for error in wrong_type["errors"]] == ["couponType"]
    unknown = assert_problem(call("POST", ENDPOINT, {"couponType": "SUMMER", "x": 1}), 400, "invalid")
    assert unknown["errors"] == [{"field": "x", "message": "unknown field"}]
    missing = assert_problem(call("POST", ENDPOINT, {}), 400, "invalid")
    assert missing["errors"] == [{"field": "couponType", "message": "missing"}]


def test_nesting_of_32_is_not_too_deep(coupon: Coupon, call: Call) -> None:
    body = assert_problem(call("POST", ENDPOINT, nested(31)), 400, "invalid")
    assert "couponType" in body["detail"]


def test_brackets_in_a_text_do_not_nest(coupon: Coupon, call: Call) -> None:
    body = assert_problem(call("POST", ENDPOINT, {"couponType": '"[{' * 20}), 400, "invalid")
    assert "couponType" in body["detail"]


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/json-patch+json",
        "",
        "nonsense",
    ],
)
def test_another_content_type_is_415(coupon: Coupon, call: Call, content_type: str) -> None:
    response = call("POST", ENDPOINT, {"couponType": "SUMMER"}, content_type=content_type)
    assert_problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_may_be_spelled_differently(coupon: Coupon, call: Call, content_type: str) -> None:
    assert call("POST", ENDPOINT, {"couponType": "SUMMER"}, content_type=content_type).status_code == 202


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_an_empty_body_counts_as_an_empty_object(coupon: Coupon, call: Call, content_type: str) -> None:
    response = call("POST", f"/api/v1/coupons/{coupon.pk}/issue-async", b"", content_type=content_type)
    assert response.status_code == 202


def test_a_body_of_16_kib_is_read_and_one_byte_more_is_413(coupon: Coupon, call: Call) -> None:
    body = b'{"couponType":"SUMMER"}'
    assert call("POST", ENDPOINT, body + b" " * (16 * 1024 - len(body))).status_code == 202
    assert_problem(call("POST", ENDPOINT, body + b" " * (16 * 1024 - len(body) + 1)), 413, "too_large")


@pytest.mark.parametrize("length", [str(10**30), "9" * 5000])
def test_a_body_that_says_it_is_too_large_is_not_read(coupon: Coupon, call: Call, length: str) -> None:
    assert_problem(call("POST", ENDPOINT, b"{}", CONTENT_LENGTH=length), 413, "too_large")


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "deflate", "br", "identity, gzip", "utf-8", "x"])
def test_a_coded_body_is_415(coupon: Coupon, call: Call, coding: str) -> None:
    body = gzip.compress(b'{"couponType":"SUMMER"}')
    refused = call("POST", ENDPOINT, body, HTTP_CONTENT_ENCODING=coding)
    assert "Content-Encoding" in assert_problem(refused, 415, "unsupported_media_type")["detail"]
    assert refused["Accept-Encoding"] == "identity"
    assert_problem(call("POST", TOKEN, body, user=None, HTTP_CONTENT_ENCODING=coding), 415, "unsupported_media_type")


@pytest.mark.parametrize("coding", ["", "identity", "Identity"])
def test_a_body_as_it_is_may_say_so(coupon: Coupon, call: Call, coding: str) -> None:
    response = call("POST", ENDPOINT, {"couponType": "SUMMER"}, HTTP_CONTENT_ENCODING=coding)
    assert response.status_code == 202


def test_a_coded_form_is_415_too(client: Client) -> None:
    response = client.post("/admin/login/", gzip.compress(b"username=a&password=b"), FORM, HTTP_CONTENT_ENCODING="gzip")
    assert (response.status_code, response["Content-Type"]) == (415, "text/html; charset=utf-8")


def test_a_body_without_length_is_not_taken_for_empty(coupon: Coupon, call: Call) -> None:
    path = f"/api/v1/coupons/{coupon.pk}/issue-async"
    response = call("POST", path, b"{}", CONTENT_LENGTH="", HTTP_TRANSFER_ENCODING="chunked")
    assert_problem(response, 400, "invalid")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_another_method_is_405_and_names_the_right_one(coupon: Coupon, call: Call, method: str) -> None:
    response = call(method, ENDPOINT)
    assert_problem(response, 405, "method_not_allowed")
    assert response["Allow"] == "POST"


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/coupons/0",
        "/api/v1/coupons/-1",
        "/api/v1/coupons/9223372036854775808",
        "/api/v1/coupons/" + "9" * 400,
        "/api/v1/coupons/1%00",
        "/api/v1/coupons/%F0%9F%98%80",
        "/api/v1/coupons/%ff",
        "/api/v1/coupons/٣",
        "/api/v1/issue-requests/not-a-uuid",
        "/api/v1/issue-requests/01890a5d-ac96-774b-bcce-b302099a8057",
        "/api/v1/",
        "/api/v2/coupons",
        "/coupons/x",
        "/coupons/9999/issue-async/",
    ],
)
def test_a_path_to_nothing_is_404(db: None, call: Call, path: str) -> None:
    assert_problem(call("GET", path), 404, "not_found")


@pytest.mark.parametrize("name", ["limit", "cursor"])
@pytest.mark.parametrize("path", ["/api/v1/coupons", f"/api/v1/users/{ALICE}/coupons"])
@pytest.mark.parametrize(
    "value",
    ["", "0", "-1", "201", "1.5", "x", "\x00", "\ud800", "9" * 5000, "\u0665"]
    + [base64.b64encode(cursor).decode() for cursor in (b"p=abc", b"p=\x00", b"p=1e9", b"p=nan", b"\xff")]
    + [base64.b64encode(cursor).decode() for cursor in (b"o=-1", b"o=" + b"9" * 30, b"r=1&p=" + b"9" * 5000, b"p=")]
    # int() refuses more than 4,300 digits, zeros in front included.
    + ["0" * 4301]
    + [base64.b64encode(name + b"0" * 4301).decode() for name in (b"p=", b"o=", b"r=", b"p=" + b"9" * 30)],
)
def test_a_bad_page_is_no_error_of_ours(db: None, call: Call, path: str, name: str, value: str) -> None:
    response = call("GET", path, QUERY_STRING=f"{name}={quote(value, errors='surrogatepass')}")
    assert response.status_code in (200, 400, 404), response.content


def test_a_host_that_is_not_ours_is_400(db: None, call: Call) -> None:
    assert_problem(call("POST", ENDPOINT, {"couponType": "SUMMER"}, HTTP_HOST="evil.example"), 400, "invalid")


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "nonsense", ""])
def test_the_answer_is_json_whatever_is_accepted(coupon: Coupon, call: Call, accept: str) -> None:
    response = call("GET", f"/api/v1/coupons/{coupon.pk}?format=html", HTTP_ACCEPT=accept)
    assert (response.status_code, response["Content-Type"]) == (200, "application/json")


# Tokens


def forged(claims: dict[str, Any], key: str | None = None, algorithm: str = "HS256", **header: Any) -> str:
    return jwt.encode(claims, settings.SECRET_KEY if key is None else key, algorithm=algorithm, headers=header or None)


def good(**changes: Any) -> dict[str, Any]:
    claims = {"user_id": ALICE, "scope": "", "exp": int(time.time()) + 3600}
    return {name: value for name, value in (claims | changes).items() if value is not ...}


BAD_CLAIMS: dict[str, dict[str, Any]] = {
    "expired": good(exp=int(time.time()) - 1),
    "no expiry": good(exp=...),
    "expiry a text": good(exp="tomorrow"),
    "expiry null": good(exp=None),
    "expiry infinite": good(exp=float("inf")),
    "expiry not a number": good(exp=float("nan")),
    "expiry a list": good(exp=[1]),
    "not valid yet": good(nbf=int(time.time()) + 600),
    "for another audience": good(aud="elsewhere"),
    "no user": good(user_id=...),
    "user null": good(user_id=None),
    "user a boolean": good(user_id=True),
    "user a float": good(user_id=1001.0),
    "user a name": good(user_id="alice"),
    "user a number in other digits": good(user_id="\u0661\u0660\u0660\u0661"),
    "user a number with a sign": good(user_id="+1001"),
    "user a number of 5000 digits": good(user_id="9" * 5000),
    "user a list": good(user_id=[ALICE]),
    "user 0": good(user_id=0),
    "user below 0": good(user_id=-1),
    "user past 64 bits": good(user_id=2**63),
    "scope a number": good(scope=1),
    "scope a list of numbers": good(scope=[1]),
    "scope an object": good(scope={"coupons:issue-for-others": True}),
    "refresh token": good(token_type="refresh"),
    "unknown kind of token": good(token_type=["access"]),
}


def assert_unauthenticated(client: Client, authorization: str) -> None:
    response = client.post(ENDPOINT, b'{"couponType":"SUMMER"}', "application/json", HTTP_AUTHORIZATION=authorization)
    assert_problem(response, 401, "unauthenticated")
    assert response["WWW-Authenticate"] == "Bearer"
    assert not OutboxMessage.objects.exists()


@pytest.mark.parametrize("claims", BAD_CLAIMS.values(), ids=BAD_CLAIMS.keys())
def test_a_token_with_bad_claims_is_refused(coupon: Coupon, client: Client, claims: dict[str, Any]) -> None:
    assert_unauthenticated(client, f"Bearer {forged(claims)}")


def test_a_token_under_another_key_is_refused(coupon: Coupon, client: Client) -> None:
    assert_unauthenticated(client, f"Bearer {forged(good(), key='another-key-of-more-than-thirty-two-bytes')}")


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_a_token_by_another_algorithm_is_refused(coupon: Coupon, client: Client, algorithm: str) -> None:
    key = settings.SECRET_KEY.ljust(64, "x")
    assert_unauthenticated(client, f"Bearer {forged(good(), key=key, algorithm=algorithm)}")


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "RS256", "", None, ["HS256"], {"a": 1}])
def test_a_token_that_names_its_own_algorithm_is_refused(coupon: Coupon, client: Client, algorithm: Any) -> None:
    header = jwt.utils.base64url_encode(json.dumps({"alg": algorithm, "typ": "JWT"}).encode()).decode()
    _, claims, signature = forged(good()).split(".")
    for end in (signature, ""):
        assert_unauthenticated(client, f"Bearer {header}.{claims}.{end}")


def test_a_token_without_signature_is_refused(coupon: Coupon, client: Client) -> None:
    assert_unauthenticated(client, f"Bearer {forged(good(), key='', algorithm='none')}")


def test_a_changed_token_is_refused(coupon: Coupon, client: Client) -> None:
    header, _, signature = forged(good()).split(".")
    claims = jwt.utils.base64url_encode(json.dumps(good(user_id=BOB)).encode()).decode()
    assert_unauthenticated(client, f"Bearer {header}.{claims}.{signature}")


@pytest.mark.parametrize("part", [b"[" * 50_000, b'{"a":' * 20_000, b"\xff", b"1", b"null", b'{"alg":"HS256"}'])
def test_a_token_of_rubbish_is_refused(coupon: Coupon, client: Client, part: bytes) -> None:
    encoded = jwt.utils.base64url_encode(part).decode()
    assert_unauthenticated(client, f"Bearer {encoded}.{encoded}.{encoded}")


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Bearer a b", "Bearer a.b", "Bearer ü", "Token abc", "Basic YTpi", "Bearer\x00x"],
)
def test_a_malformed_authorization_header_is_refused(coupon: Coupon, client: Client, header: str) -> None:
    assert_unauthenticated(client, header)


def test_no_authorization_at_all_is_refused(coupon: Coupon, call: Call) -> None:
    response = call("POST", ENDPOINT, {"couponType": "SUMMER"}, user=None)
    assert_problem(response, 401, "unauthenticated")
    assert response["WWW-Authenticate"] == "Bearer"


@given(st.text(alphabet=st.characters(max_codepoint=255, exclude_characters="\r\n")))
@hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_text_is_a_token(db: None, client: Client, token: str) -> None:
    assert client.get("/api/v1/coupons", HTTP_AUTHORIZATION=f"Bearer {token}").status_code == 401


@pytest.mark.parametrize(
    "claims", [good(), good(scope=...), good(scope=None), good(scope=["a"]), good(user_id=str(ALICE)), good(sub=5)]
)
def test_an_outsiders_token_with_the_three_claims_is_good(
    coupon: Coupon, client: Client, claims: dict[str, Any]
) -> None:
    response = client.post(
        ENDPOINT, b'{"couponType":"SUMMER"}', "application/json", HTTP_AUTHORIZATION=f"bearer  {forged(claims)}"
    )
    assert response.status_code == 202
    assert response.json()["userId"] == ALICE


def test_acting_for_another_user_needs_the_scope(coupon: Coupon, call: Call) -> None:
    body = {"couponType": "SUMMER", "userId": BOB}
    assert_problem(call("POST", ENDPOINT, body), 403, "forbidden")
    assert_problem(call("POST", ENDPOINT, body, scope="coupons:issue-for-others-not"), 403, "forbidden")
    assert call("POST", ENDPOINT, body, scope="x coupons:issue-for-others").status_code == 202


def test_a_token_costs_no_query(coupon: Coupon, call: Call, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(1):
        call("GET", f"/api/v1/coupons/{coupon.pk}", user=ALICE)


def test_a_token_in_the_address_or_a_cookie_is_not_seen(coupon: Coupon, client: Client) -> None:
    token = issue_access_token(ALICE)
    client.cookies["access"] = token
    assert client.get(f"/api/v1/coupons?access={token}&token={token}").status_code == 401
