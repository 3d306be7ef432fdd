from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from coupons.models import Coupon

from .conftest import BOB, Call, assert_problem

DOOR = "/api/v1/coupons/issue-async"


@pytest.fixture
def carol(db: None) -> User:
    return User.objects.create_user("carol")


@pytest.fixture
def browser(carol: User) -> Client:
    """Carol's browser: logged in, with the CSRF cookie that a form would have set."""
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(carol)
    browser.cookies["csrftoken"] = "a" * 32
    return browser


def test_a_session_acts_for_its_own_user(coupon: Coupon, browser: Client, carol: User) -> None:
    response = browser.post(DOOR, {"couponType": "SUMMER"}, "application/json", HTTP_X_CSRFTOKEN="a" * 32)
    assert response.status_code == 202
    assert response.json()["userId"] == carol.pk


@pytest.mark.parametrize("token", ["", "b" * 32])
def test_a_session_without_csrf_token_is_403(coupon: Coupon, browser: Client, token: str) -> None:
    response = browser.post(DOOR, {"couponType": "SUMMER"}, "application/json", HTTP_X_CSRFTOKEN=token)
    assert_problem(response, 403, "forbidden")


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain"]
)
def test_a_form_on_another_site_cannot_post(coupon: Coupon, browser: Client, content_type: str) -> None:
    path = f"/api/v1/coupons/{coupon.pk}/issue-async"
    assert_problem(browser.generic("POST", path, b"", content_type), 403, "forbidden")
    assert_problem(browser.generic("POST", path, b"{}", content_type), 415, "unsupported_media_type")


@pytest.mark.parametrize("key", [r'"\000aaaaaaaaaaaaaaaa"', r'"\377aaaaaaaaaaaaaaaa"', "a" * 5000, "a b", ""])
@pytest.mark.parametrize(("path", "status"), [("/api/v1/coupons", 401), ("/admin/login/", 200)])
def test_a_cookie_that_is_no_session_is_none(db: None, client: Client, key: str, path: str, status: int) -> None:
    # In quotes a cookie may spell any character, NUL included.
    assert client.get(path, HTTP_COOKIE=f"sessionid={key}").status_code == status


def test_reading_needs_no_csrf_token(db: None, browser: Client) -> None:
    assert browser.get("/api/v1/coupons").status_code == 200


def test_acting_for_another_user_needs_the_permission(coupon: Coupon, browser: Client, carol: User) -> None:
    body = {"couponType": "SUMMER", "userId": BOB}
    refused = browser.post(DOOR, body, "application/json", HTTP_X_CSRFTOKEN="a" * 32)
    assert_problem(refused, 403, "forbidden")
    carol.user_permissions.add(Permission.objects.get(codename="issue_for_others"))
    response = browser.post(DOOR, body, "application/json", HTTP_X_CSRFTOKEN="a" * 32)
    assert response.status_code == 202


def test_a_token_does_not_inherit_the_permissions_of_a_row_with_its_id(coupon: Coupon, carol: User, call: Call) -> None:
    User.objects.update(is_superuser=True)
    response = call("POST", DOOR, {"couponType": "SUMMER", "userId": BOB}, user=carol.pk)
    assert_problem(response, 403, "forbidden")


def test_a_bad_token_is_not_made_up_for_by_a_session(coupon: Coupon, browser: Client) -> None:
    response = browser.get("/api/v1/coupons", HTTP_AUTHORIZATION="Bearer rubbish")
    assert_problem(response, 401, "unauthenticated")
