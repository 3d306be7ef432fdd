"""Tokens are accepted and refused exactly as PyJWT does it with the service's options, however they are made."""

from __future__ import annotations

import hmac
import json
import math
import time
from base64 import urlsafe_b64encode
from contextlib import suppress
from typing import Any

import jwt
import pytest
from django.conf import settings
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from couponsite.auth.tokens import (
    AccessClaims,
    InvalidToken,
    RefreshClaims,
    issue_access_token,
    issue_refresh_token,
    read_access_token,
    read_refresh_token,
)

HEADER = b'{"alg":"HS256","typ":"JWT"}'
OTHER_KEY = "another-key-which-signs-nothing-of-value-either"
YEAR = 365 * 24 * 3600
ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

Verdict = tuple[AccessClaims | None, RefreshClaims | None]
REFUSED: Verdict = (None, None)


# How tokens are made


def segment(raw: bytes) -> bytes:
    return urlsafe_b64encode(raw).rstrip(b"=")


def sign(signed: bytes, key: str | None = None, digest: str = "sha256") -> str:
    key = settings.SECRET_KEY if key is None else key
    return (signed + b"." + segment(hmac.digest(key.encode(), signed, digest))).decode()


def token_of(payload: bytes, header: bytes = HEADER) -> str:
    return sign(segment(header) + b"." + segment(payload))


def claims_now(**changes: object) -> bytes:
    return json.dumps({"user_id": 7, "scope": "a b", "exp": int(time.time()) + YEAR, **changes}).encode()


# Verdicts


def verdict_of_the_service(token: str) -> Verdict:
    """The claims that the service finds in an access and in a refresh token; None where it refuses."""
    access = refresh = None
    with suppress(InvalidToken):
        access = read_access_token(token)
    with suppress(InvalidToken):
        refresh = read_refresh_token(token)
    return access, refresh


def verdict_of_pyjwt(token: str) -> Verdict:
    """The same from PyJWT alone, with the service's options and rules for the user, scope and type."""
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            settings.SECRET_KEY,
            algorithms=["HS256"],
            options={
                "require": ["exp", "user_id"],
                "verify_iat": False,
                "verify_sub": False,
                "verify_jti": False,
            },
        )
    except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError, RecursionError):
        return REFUSED
    user, scope, kind, mark = (claims.get(name) for name in ("user_id", "scope", "token_type", "mark"))
    if isinstance(user, str) and user.isascii() and user.isdigit() and len(user) < 20:
        user = int(user)
    if type(user) is not int or not 0 < user < 2**63:
        return REFUSED
    if kind == "refresh":
        return (None, RefreshClaims(user, mark)) if isinstance(mark, str) else REFUSED
    scopes = scope.split() if isinstance(scope, str) else [] if scope is None else scope
    readable = isinstance(scopes, list) and all(isinstance(one, str) for one in scopes)
    if not readable or claims.get("token_type", "access") != "access":
        return REFUSED
    return AccessClaims(user, frozenset(scopes)), None


def assert_same_verdict(token: str) -> None:
    before, found, after = verdict_of_pyjwt(token), verdict_of_the_service(token), verdict_of_pyjwt(token)
    # A token may expire, or become valid, meanwhile.
    assert found in (before, after), token


# Claims

seconds = st.one_of(
    st.integers(-3, 3).map(lambda offset: int(time.time()) + offset),
    # Always as many digits: how long a token is decides what is drawn for it.
    st.integers(-3, 3).map(lambda offset: int(time.time()) + offset + 0.5),
    st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**400, 1e308, math.inf, -math.inf, math.nan, True, False, None]),
    st.just(int(time.time()) + YEAR),
    st.just(str(int(time.time()) + YEAR)),
)
users: st.SearchStrategy[object] = st.one_of(
    st.integers(1, 10),
    st.sampled_from(
        [0, -1, 2**63 - 1, 2**63, 10**400, 1.0, 7.5, True, None, "7", "007", "\u0667", "7 ", "", "-7", [7], {}]
    ),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
scopes: st.SearchStrategy[object] = st.sampled_from(["", "a", " a  b ", None, ["a"], ["a", 1], [], {}, 7]) | anything
claim = st.one_of(
    st.tuples(st.just("user_id"), users),
    st.tuples(st.just("exp"), seconds),
    st.tuples(st.just("scope"), scopes),
    st.tuples(st.just("token_type"), st.sampled_from(["access", "refresh", "", None, 1, ["access"]])),
    st.tuples(st.just("mark"), st.sampled_from(["", "mark", None, 1])),
    st.tuples(st.sampled_from(["nbf", "iat"]), seconds),
    st.tuples(st.sampled_from(["aud", "iss", "sub", "jti", "crit", "alg", "other"]), anything),
)


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """A JSON object, mostly with a user and an expiry, perhaps with claims that occur twice; or no object at all."""
    if draw(st.integers(0, 9)) == 0:
        other = st.sampled_from(
            [b"", b"{", b"{}", b"[]", b"7", b"null", b'"a"', b"[" * 100_000, b'{"exp":' + b"9" * 5000]
        )
        return draw(other | st.binary(max_size=20) | anything.map(lambda value: json.dumps(value).encode()))
    claims = draw(st.lists(claim, max_size=4))
    claims += [pair for pair in (("user_id", 7), ("exp", int(time.time()) + YEAR)) if draw(st.integers(0, 4))]
    text = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in draw(st.permutations(claims)))
    encoding = draw(st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-32-be"]))
    return f"{{{text}}}".encode(encoding)


headers = st.just(HEADER) | st.sampled_from(
    [
        b'{"typ":"JWT","alg":"HS256"}',
        b'{"alg":"HS256"}',
        b'{"alg":"none","typ":"JWT"}',
        b'{"alg":"HS512","typ":"JWT"}',
        b'{"alg":"RS256","typ":"JWT"}',
        b'{"alg":"hs256","typ":"JWT"}',
        b'{"alg":null}',
        b'{"alg":"HS256","alg":"none"}',
        b'{"alg":"none","alg":"HS256"}',
        b'{"alg":"HS256","typ":"JWT","crit":["exp"]}',
        b'{"alg":"HS256","typ":"JWT","crit":["b64"],"b64":false}',
        b'{"alg":"HS256","typ":"JWT","kid":7}',
        b'{"alg":"HS256","typ":"JWT"} ',
        b"{}",
        b"[]",
        b"",
    ]
)


@st.composite
def odd_segments(draw: st.DrawFn, raw: bytes) -> bytes:
    """The segment in canonical base64, mostly; or padded, with other characters inside, or with surplus bits."""
    plain = segment(raw)
    kind = draw(st.sampled_from(["plain"] * 4 + ["padded", "junk", "bits", "standard"]))
    if kind == "padded":
        return plain + b"=" * draw(st.integers(1, 4))
    if kind == "junk":
        at = draw(st.integers(0, len(plain)))
        junk = draw(st.sampled_from([b".", b"..", b"!", b"!!!!", b"=", b"\n", b" ", b"+", b"/", b"\xc3\xa9", b"A"]))
        return plain[:at] + junk + plain[at:]
    if kind == "bits" and len(plain) % 4 in (2, 3):
        return plain[:-1] + bytes([ALPHABET[ALPHABET.index(plain[-1]) ^ draw(st.integers(1, 3))]])
    if kind == "standard":
        return plain.replace(b"-", b"+").replace(b"_", b"/")
    return plain


@st.composite
def signed_tokens(draw: st.DrawFn) -> str:
    """A token with any header and claims, in odd base64 perhaps, mostly signed with the service's key."""
    header, payload = draw(headers), draw(payloads())
    signed = draw(odd_segments(header)) + b"." + draw(odd_segments(payload))
    key = draw(st.sampled_from([None, None, None, OTHER_KEY, ""]))
    digest = draw(st.sampled_from(["sha256"] * 4 + ["sha512", "sha1"]))
    return sign(signed, key, digest)


@st.composite
def mutated_tokens(draw: st.DrawFn) -> str:
    """A token of the service in which characters or segments were changed, added or left out."""
    plain = [issue_access_token(7, "a b"), issue_refresh_token(7, "mark")]
    token = draw(st.sampled_from([*plain, token_of(claims_now(sub=1))]))
    parts = token.split(".")
    kind = draw(st.sampled_from(["replace", "insert", "cut", "segments", "signature", "swap"]))
    at = draw(st.integers(0, len(token) - 1))
    character = draw(st.characters(max_codepoint=0x2FF) | st.sampled_from(".=-_+/\ud800"))
    if kind == "replace":
        return token[:at] + character + token[at + 1 :]
    if kind == "insert":
        return token[:at] + character + token[at:]
    if kind == "cut":
        return token[:at]
    if kind == "segments":
        return ".".join(draw(st.lists(st.sampled_from([*parts, ""]), max_size=5)))
    if kind == "signature":
        signed = ".".join(parts[:2])
        signature = draw(odd_segments(hmac.digest(settings.SECRET_KEY.encode(), signed.encode(), "sha256")))
        return f"{signed}.{signature.decode()}"
    other = token_of(claims_now(user_id=8)).split(".")
    return ".".join(draw(st.sampled_from([parts, other]))[index] for index in range(3))


# The tests


@pytest.mark.parametrize("odd", [b"=", b"!", b".", b"\n", b"+"], ids=repr)
def test_a_payload_that_is_no_base64url_is_refused(odd: bytes) -> None:
    payload = segment(claims_now())
    assert read_access_token(sign(segment(HEADER) + b"." + payload)).user_id == 7
    assert verdict_of_the_service(sign(segment(HEADER) + b"." + payload + odd)) == REFUSED


def test_a_payload_with_surplus_bits_is_refused() -> None:
    payload = segment(claims_now().rstrip(b"}").ljust(100) + b"}")
    assert len(payload) % 4 == 3
    surplus = payload[:-1] + bytes([ALPHABET[ALPHABET.index(payload[-1]) + 1]])
    assert read_access_token(sign(segment(HEADER) + b"." + payload)).user_id == 7
    assert verdict_of_the_service(sign(segment(HEADER) + b"." + surplus)) == REFUSED


@hypothesis_settings(max_examples=500, suppress_health_check=list(HealthCheck))
@given(signed_tokens())
def test_any_signed_token(token: str) -> None:
    assert_same_verdict(token)


@hypothesis_settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(mutated_tokens() | st.text(max_size=80))
def test_any_changed_token(token: str) -> None:
    assert_same_verdict(token)
