"""The database or Redis away: 503 with Retry-After, and service again as soon as they are back."""

from __future__ import annotations

import select
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from coupons import selectors
from coupons.issuance import accept_group
from coupons.models import Coupon
from devstack import wait_until
from kafka_bridge.outbox.writing import OutboxRow, insert_new_rows

from .conftest import Call, assert_problem

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def summer(transactional_db: None) -> Coupon:
    return Coupon.objects.create(
        coupon_type="SUMMER", name="Summer", discount_type="FIXED", discount_value=1000, total_quantity=5
    )


@pytest.fixture
def no_database(summer: Coupon) -> Iterator[None]:
    """The next connection goes to a port where no process listens."""
    port = connection.settings_dict["PORT"]
    connection.close()
    connection.settings_dict["PORT"] = "1"
    yield
    connection.close()
    connection.settings_dict["PORT"] = port


def end_session_of_this_thread() -> None:
    connection.ensure_connection()
    pid = connection.connection.info.backend_pid
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            assert cursor.fetchone() == (True,)
    finally:
        other.close()


@pytest.mark.usefixtures("no_database")
def test_the_api_answers_503_while_the_database_is_away(call: Call) -> None:
    for method, path in [("GET", "/api/v1/coupons"), ("POST", "/api/v1/coupons/issue-async")]:
        response = call(method, path, {"couponType": "SUMMER"} if method == "POST" else b"")
        assert_problem(response, 503, "unavailable")
        assert response["Retry-After"] == "1"


@pytest.mark.usefixtures("no_database")
def test_logins_and_sessions_answer_503_while_the_database_is_away(call: Call, client: Client) -> None:
    body = {"username": "carol", "password": "x"}
    assert_problem(call("POST", "/api/v1/auth/token", body, user=None), 503, "unavailable")
    client.cookies["sessionid"] = "a" * 32
    assert_problem(client.get("/api/v1/coupons"), 503, "unavailable")


@pytest.mark.usefixtures("no_database")
def test_the_start_page_says_so_while_the_database_is_away(client: Client) -> None:
    response = client.get("/")
    assert (response.status_code, response["Content-Type"]) == (503, "text/html; charset=utf-8")
    assert "Back in a moment" in response.content.decode()


@pytest.mark.usefixtures("no_database")
def test_an_admin_page_says_so_while_the_database_is_away() -> None:
    client = Client(raise_request_exception=False)
    client.cookies["sessionid"] = "a" * 32
    response = client.get("/admin/")
    assert (response.status_code, response["Retry-After"]) == (503, "1")


@pytest.mark.usefixtures("no_database")
def test_only_readiness_fails_while_the_database_is_away(client: Client) -> None:
    assert client.get("/livez").status_code == 200
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["postgresql"] == "unavailable"


def test_a_session_that_the_server_ended_between_requests_fails_nobody(summer: Coupon, call: Call) -> None:
    end_session_of_this_thread()
    assert call("GET", "/api/v1/coupons").status_code == 200


def test_a_session_that_ends_within_a_request_fails_that_request_only(
    summer: Coupon, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupons = selectors.coupons

    def interrupted() -> object:
        end_session_of_this_thread()
        return coupons()

    monkeypatch.setattr(selectors, "coupons", interrupted)
    assert_problem(call("GET", "/api/v1/coupons"), 503, "unavailable")
    monkeypatch.undo()
    assert call("GET", "/api/v1/coupons").status_code == 200


def test_a_replica_that_takes_no_writes_is_503(summer: Coupon, call: Call) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
    assert_problem(call("POST", "/api/v1/coupons/issue-async", {"couponType": "SUMMER"}), 503, "unavailable")
    # The connection was dropped with its setting, as one to a demoted primary would be.
    assert call("POST", "/api/v1/coupons/issue-async", {"couponType": "SUMMER"}).status_code == 202


def test_an_error_of_ours_is_500_without_its_cause(
    summer: Coupon, call: Call, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("the secret plan")

    monkeypatch.setattr(selectors, "coupons", broken)
    client.raise_request_exception = False
    response = call("GET", "/api/v1/coupons")
    assert_problem(response, 500, "error")
    assert "secret plan" not in response.content.decode()
    assert "secret plan" in caplog.text


def a_session_of_a_process() -> Any:
    return connection.get_new_connection(connection.get_connection_params())


def test_a_process_that_hangs_in_its_transaction_keeps_no_lock_for_ever() -> None:
    with closing(a_session_of_a_process()) as session, session.cursor() as cursor:
        cursor.execute("SHOW idle_in_transaction_session_timeout")
        assert cursor.fetchone() == ("1min",)


def test_a_request_that_hung_for_too_long_in_its_transaction_is_answered_503(
    summer: Coupon, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(rows: Sequence[OutboxRow]) -> list[bool]:
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 10")
        wait_until(partial(has_hung_up, connection.connection), 5, "the session was not ended", 0.01)
        return insert_new_rows(rows)

    with monkeypatch.context() as patch:
        patch.setattr(accept_group, "insert_new_rows", hang)
        assert_problem(call("POST", "/api/v1/coupons/issue-async", {"couponType": "SUMMER"}), 503, "unavailable")
    assert call("POST", "/api/v1/coupons/issue-async", {"couponType": "SUMMER"}).status_code == 202


def has_hung_up(session: Any) -> bool:
    poll = select.poll()
    poll.register(session.fileno(), select.POLLIN)
    return bool(poll.poll(0))
