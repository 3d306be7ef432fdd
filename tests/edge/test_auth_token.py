from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import jwt
import pytest
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.core.cache import caches
from django_redis.pool import ConnectionFactory
from pytest_django.fixtures import Settings

from couponsite.auth.tokens import issue_access_token, issue_refresh_token, read_access_token
from couponsite.environment.values import Rate

from .conftest import ALICE, Call, assert_problem

TOKEN = "/api/v1/auth/token"
REFRESH = "/api/v1/auth/token/refresh"
PASSWORD = "correct horse battery staple"


@pytest.fixture(autouse=True)
def quick_hashes(settings: Settings) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def carol(db: None) -> User:
    return User.objects.create_user("carol", password=PASSWORD)


def login(call: Call, username: str = "carol", password: str = PASSWORD, **extra: Any) -> Any:
    return call("POST", TOKEN, {"username": username, "password": password}, user=None, **extra)


def test_a_password_buys_a_token_that_opens_the_api(carol: User, call: Call, client: Any) -> None:
    pair = login(call).json()
    assert pair.keys() == {"access", "refresh"}
    assert client.get("/api/v1/coupons", HTTP_AUTHORIZATION=f"Bearer {pair['access']}").status_code == 200
    claims = read_access_token(pair["access"])
    assert (claims.user_id, claims.scopes) == (carol.pk, frozenset())


def test_the_token_lives_as_long_as_the_settings_say(carol: User, call: Call) -> None:
    claims = jwt.decode(login(call).json()["access"], settings.SECRET_KEY, algorithms=["HS256"])
    assert claims.keys() == {"user_id", "scope", "exp"}
    assert abs(claims["exp"] - time.time() - settings.ACCESS_TOKEN_LIFETIME.total_seconds()) < 10


def test_the_permission_becomes_a_scope(carol: User, call: Call) -> None:
    carol.user_permissions.add(Permission.objects.get(codename="issue_for_others"))
    assert read_access_token(login(call).json()["access"]).scopes == {"coupons:issue-for-others"}


def test_a_stale_token_in_the_header_does_not_keep_anyone_out(carol: User, call: Call) -> None:
    stale = issue_access_token(carol.pk, lifetime=timedelta(seconds=-1))
    assert login(call, HTTP_AUTHORIZATION=f"Bearer {stale}").status_code == 200


@pytest.mark.parametrize(("username", "password"), [("carol", "wrong"), ("unknown", PASSWORD), ("CAROL", PASSWORD)])
def test_a_wrong_name_or_password_is_401(carol: User, call: Call, username: str, password: str) -> None:
    assert_problem(login(call, username, password), 401, "unauthenticated")


def test_an_inactive_user_is_401_and_reads_like_a_wrong_password(carol: User, call: Call) -> None:
    wrong = assert_problem(login(call, password="wrong"), 401, "unauthenticated")
    User.objects.update(is_active=False)
    assert assert_problem(login(call), 401, "unauthenticated") == wrong


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"username": "carol"},
        {"username": "carol", "password": None},
        {"username": ["carol"], "password": PASSWORD},
        {"username": "carol", "password": PASSWORD, "is_staff": True},
        {"username": "x" * 151, "password": PASSWORD},
        {"username": "", "password": PASSWORD},
        b'{"username":"carol\\u0000","password":"x"}',
    ],
)
def test_bad_credentials_are_400(db: None, call: Call, body: Any) -> None:
    assert_problem(call("POST", TOKEN, body, user=None), 400, "invalid")


def test_a_refresh_token_buys_an_access_token(carol: User, call: Call) -> None:
    refresh = login(call).json()["refresh"]
    response = call("POST", REFRESH, {"refresh": refresh}, user=None)
    assert read_access_token(response.json()["access"]).user_id == carol.pk


def test_a_refresh_token_is_no_access_token(carol: User, call: Call, client: Any) -> None:
    refresh = login(call).json()["refresh"]
    response = client.get("/api/v1/coupons", HTTP_AUTHORIZATION=f"Bearer {refresh}")
    assert_problem(response, 401, "unauthenticated")


def test_a_refresh_ends_with_the_account_and_with_the_password(carol: User, call: Call) -> None:
    refresh = login(call).json()["refresh"]
    User.objects.update(is_active=False)
    assert_problem(call("POST", REFRESH, {"refresh": refresh}, user=None), 401, "unauthenticated")
    carol.set_password("another " + PASSWORD)
    carol.save()
    assert_problem(call("POST", REFRESH, {"refresh": refresh}, user=None), 401, "unauthenticated")


@pytest.mark.parametrize(
    "token",
    [
        "rubbish",
        issue_access_token(ALICE),
        issue_refresh_token(2**62, "mark"),
        jwt.encode({"user_id": 1, "token_type": "refresh", "exp": 2**40}, settings.SECRET_KEY, algorithm="HS256"),
    ],
)
def test_what_is_no_refresh_token_of_a_user_is_401(carol: User, call: Call, token: str) -> None:
    assert_problem(call("POST", REFRESH, {"refresh": token}, user=None), 401, "unauthenticated")


def test_guesses_at_one_account_are_throttled_from_every_address(carol: User, call: Call, settings: Settings) -> None:
    settings.AUTH_TOKEN_THROTTLE = Rate(3, 86_400)
    for n in range(3):
        assert login(call, password="wrong", REMOTE_ADDR=f"192.0.2.{n}").status_code == 401
    response = login(call, REMOTE_ADDR="192.0.2.9")
    assert_problem(response, 429, "throttled")
    assert 0 < int(response["Retry-After"]) <= 86_400
    assert login(call, "dave", REMOTE_ADDR="192.0.2.9").status_code == 401


def test_guesses_from_one_address_are_throttled_for_every_account(carol: User, call: Call, settings: Settings) -> None:
    settings.AUTH_TOKEN_THROTTLE = Rate(3, 86_400)
    for n in range(3):
        # Without a trusted proxy anyone can write this header, so it does not change the address that is counted.
        assert login(call, f"user{n}", HTTP_X_FORWARDED_FOR=f"192.0.2.{n}").status_code == 401
    assert_problem(login(call), 429, "throttled")
    assert login(call, REMOTE_ADDR="192.0.2.9").status_code == 200


def test_nothing_else_is_throttled(carol: User, call: Call, settings: Settings) -> None:
    settings.AUTH_TOKEN_THROTTLE = Rate(1, 86_400)
    refresh = login(call).json()["refresh"]
    for _ in range(3):
        assert call("POST", REFRESH, {"refresh": refresh}, user=None).status_code == 200
        assert call("GET", "/api/v1/coupons").status_code == 200


@pytest.fixture
def no_redis(settings: Settings) -> Iterator[None]:
    """The cache points at a port where no process listens."""
    pools, ConnectionFactory._pools = ConnectionFactory._pools, {}
    location = {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}
    settings.CACHES = {**settings.CACHES, "default": location}
    yield
    ConnectionFactory._pools = pools


@pytest.mark.usefixtures("no_redis")
def test_without_redis_logins_go_on_and_are_throttled_per_process(carol: User, call: Call, settings: Settings) -> None:
    settings.AUTH_TOKEN_THROTTLE = Rate(2, 86_400)
    caches["process"].clear()
    assert [login(call).status_code for _ in range(3)] == [200, 200, 429]
