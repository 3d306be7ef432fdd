"""Guesses of passwords are slow at both logins together, and lock no user out of a known address."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django_redis import get_redis_connection
from pytest_django.fixtures import Settings

from couponsite.environment.values import Rate

from .conftest import Call, assert_problem

TOKEN = "/api/v1/auth/token"
ADMIN = "/admin/login/"
PASSWORD = "correct horse battery staple"
HOME, ELSEWHERE = "192.0.2.1", "198.51.100.9"
LIMIT = 3


@pytest.fixture(autouse=True)
def brake(settings: Settings) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    # A day's window does not end within a test, unless it runs at midnight.
    settings.AUTH_TOKEN_THROTTLE = Rate(LIMIT, 86_400)


@pytest.fixture
def carol(db: None) -> User:
    return User.objects.create_superuser("carol", password=PASSWORD)


@pytest.fixture
def token(call: Call) -> Any:
    """``token("carol", PASSWORD, "192.0.2.1")``: a login at the API from that address."""

    def login(username: str, password: str, address: str) -> Any:
        return call("POST", TOKEN, {"username": username, "password": password}, user=None, REMOTE_ADDR=address)

    return login


@pytest.fixture
def admin() -> Any:
    """The same at the page of the admin, each time in a browser of its own."""

    def login(username: str, password: str, address: str) -> Any:
        return Client().post(ADMIN, {"username": username, "password": password}, REMOTE_ADDR=address)

    return login


@pytest.fixture
def next_window(settings: Settings) -> Any:
    """Begins a window in which no login was counted yet; known addresses stay known."""

    def begin() -> None:
        # The window's number is the time divided by its length: twice the length always gives another number.
        settings.AUTH_TOKEN_THROTTLE = Rate(LIMIT, settings.AUTH_TOKEN_THROTTLE.seconds * 2)

    return begin


def test_a_throttled_login_of_the_admin_is_a_page_that_says_when_to_try_again(carol: User, admin: Any) -> None:
    for _ in range(LIMIT):
        assert admin("carol", "wrong", HOME).status_code == 200
    response = admin("carol", PASSWORD, HOME)
    assert response.status_code == 429
    seconds = int(response["Retry-After"])
    assert 0 < seconds <= 86_400
    assert f"Too many logins: try again in {seconds} seconds." in response.content.decode()
    assert "sessionid" not in response.cookies


def test_the_page_itself_is_not_counted(carol: User, client: Client, admin: Any) -> None:
    for _ in range(LIMIT + 1):
        assert client.get(ADMIN, REMOTE_ADDR=HOME).status_code == 200
    assert admin("carol", PASSWORD, HOME).status_code == 302


def test_both_logins_count_an_address_together(carol: User, token: Any, admin: Any) -> None:
    for n in range(LIMIT - 1):
        assert token(f"user{n}", "wrong", HOME).status_code == 401
    assert admin("another", "wrong", HOME).status_code == 200
    assert admin("carol", PASSWORD, HOME).status_code == 429
    assert_problem(token("carol", PASSWORD, HOME), 429, "throttled")


def test_both_logins_count_an_account_together(carol: User, token: Any, admin: Any) -> None:
    for n in range(LIMIT):
        guess = token if n % 2 else admin
        assert guess("carol", "wrong", f"198.51.100.{n}").status_code in (200, 401)
    assert_problem(token("carol", PASSWORD, HOME), 429, "throttled")
    assert admin("carol", PASSWORD, HOME).status_code == 429


@pytest.mark.parametrize("first", ["token", "admin"])
def test_guesses_from_elsewhere_do_not_lock_a_user_out_of_a_known_address(
    carol: User, token: Any, admin: Any, next_window: Any, first: str
) -> None:
    assert (token if first == "token" else admin)("carol", PASSWORD, HOME).status_code in (200, 302)
    next_window()
    for n in range(11):
        token("carol", "wrong", f"198.51.100.{n}")
    assert token("carol", PASSWORD, HOME).status_code == 200
    assert admin("carol", PASSWORD, HOME).status_code == 302
    # Even the right password, where the account was never used.
    assert_problem(token("carol", PASSWORD, "203.0.113.5"), 429, "throttled")


def test_a_known_address_may_not_guess_either(carol: User, token: Any, next_window: Any) -> None:
    assert token("carol", PASSWORD, HOME).status_code == 200
    next_window()
    for n in range(LIMIT):
        token("carol", "wrong", f"198.51.100.{n}")
    # It reads as it does from any other address.
    wrong = assert_problem(token("carol", "wrong", HOME), 429, "throttled")
    assert wrong == assert_problem(token("carol", "wrong", ELSEWHERE), 429, "throttled")
    for _ in range(LIMIT):
        token("carol", "wrong", HOME)
    assert_problem(token("carol", PASSWORD, HOME), 429, "throttled")


def test_an_address_is_known_to_the_account_that_was_used_there_alone(
    carol: User, token: Any, next_window: Any
) -> None:
    User.objects.create_user("dave", password=PASSWORD)
    assert token("dave", PASSWORD, HOME).status_code == 200
    next_window()
    for n in range(LIMIT):
        token("carol", "wrong", f"198.51.100.{n}")
    assert_problem(token("carol", PASSWORD, HOME), 429, "throttled")


def test_a_wrong_password_makes_no_address_known(carol: User, token: Any, next_window: Any) -> None:
    assert token("carol", "wrong", HOME).status_code == 401
    next_window()
    for n in range(LIMIT):
        token("carol", "wrong", f"198.51.100.{n}")
    assert_problem(token("carol", PASSWORD, HOME), 429, "throttled")


def test_another_address_of_the_same_ipv6_network_is_known(carol: User, token: Any, next_window: Any) -> None:
    assert token("carol", PASSWORD, "2001:db8::1").status_code == 200
    next_window()
    for n in range(LIMIT):
        token("carol", "wrong", f"198.51.100.{n}")
    assert token("carol", PASSWORD, "2001:db8::ffff:2").status_code == 200
    assert_problem(token("carol", PASSWORD, "2001:db8:0:1::1"), 429, "throttled")


def test_an_emptied_redis_knows_no_address_until_the_next_login(
    carol: User, token: Any, next_window: Any, redis_flushed: None
) -> None:
    assert token("carol", PASSWORD, HOME).status_code == 200
    get_redis_connection("default").flushdb()
    for n in range(LIMIT):
        token("carol", "wrong", f"198.51.100.{n}")
    assert_problem(token("carol", PASSWORD, HOME), 429, "throttled")
    next_window()
    assert token("carol", PASSWORD, HOME).status_code == 200
    for n in range(LIMIT):
        token("carol", "wrong", f"198.51.100.{n}")
    assert token("carol", PASSWORD, HOME).status_code == 200


def test_what_redis_keeps_of_an_account_is_bounded_in_number_and_time(
    carol: User, token: Any, redis_flushed: None, settings: Settings
) -> None:
    settings.AUTH_TOKEN_THROTTLE = Rate(1000, 86_400)
    for n in range(20):
        assert token("carol", PASSWORD, f"192.0.2.{n}").status_code == 200
    redis = get_redis_connection("default")
    [key] = redis.keys("*login:known:*")
    assert redis.zcard(key) == 16
    assert 0 < redis.ttl(key) <= 30 * 86_400


@pytest.mark.parametrize("stored", ["rubbish", "1"])
def test_a_counter_that_cannot_be_read_stops_no_login(
    carol: User, token: Any, redis_flushed: None, stored: str
) -> None:
    assert token("carol", PASSWORD, HOME).status_code == 200
    redis = get_redis_connection("default")
    for key in redis.keys("*login:*"):
        redis.set(key, stored)
    assert token("carol", PASSWORD, HOME).status_code == 200


def test_a_user_who_does_not_exist_reads_like_one_who_does(carol: User, token: Any, admin: Any) -> None:
    for n in range(LIMIT + 2):
        known, unknown = token("carol", "wrong", f"198.51.100.{n}"), token("unknown", "wrong", f"203.0.113.{n}")
        assert (known.status_code, known.content) == (unknown.status_code, unknown.content)
    assert admin("carol", "wrong", HOME).status_code == admin("unknown", "wrong", ELSEWHERE).status_code == 429


NAMES = ["김민지", "Zoë", "ﬁona", "각" * 60]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKD"])
def test_a_name_is_the_same_in_every_normal_form(db: None, token: Any, admin: Any, name: str, form: Any) -> None:
    user = User.objects.create_superuser(name, password=PASSWORD)
    assert user.username == unicodedata.normalize("NFKC", name)
    written = unicodedata.normalize(form, name)
    assert token(written, PASSWORD, HOME).status_code == 200
    assert admin(written, PASSWORD, HOME).status_code == 302


def test_the_normal_forms_of_a_name_are_one_account(db: None, token: Any) -> None:
    User.objects.create_user("Zoë", password=PASSWORD)
    for n in range(LIMIT):
        form: Any = ["NFC", "NFD"][n % 2]
        assert token(unicodedata.normalize(form, "Zoë"), "wrong", f"198.51.100.{n}").status_code == 401
    assert_problem(token("Zoë", PASSWORD, HOME), 429, "throttled")
