"""The page of the preflight: the lines of the command, and the button of the test alert."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.test import Client
from django_redis import get_redis_connection
from pytest_django import Settings

from coupons.models import Coupon
from devstack.ports import free_port
from kafka_bridge.models import Alert, AlertNotification, OperatorAction
from kafka_bridge.operating import preflight_checks
from tests.admin.pages import messages_of

MakeCoupon = Callable[..., Coupon]


@pytest.fixture(autouse=True)
def _without_kafka(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.KAFKA_BOOTSTRAP_SERVERS = f"127.0.0.1:{free_port()}"
    monkeypatch.setattr(preflight_checks, "KAFKA_SECONDS", 0.2)


@pytest.fixture
def coupon(make_coupon: MakeCoupon) -> Coupon:
    return make_coupon(coupon_type="SUMMER")


def test_the_page_shows_the_lines_and_is_linked_from_the_dashboard(viewer: Client, coupon: Coupon) -> None:
    assert 'href="/ops/preflight/SUMMER"' in viewer.get("/ops/").content.decode()
    page = viewer.get("/ops/preflight/SUMMER?expect=6000000").content.decode()
    assert "no-go" in page
    assert "5000000 rows may wait, 6000000 requests are expected" in page
    assert "Kafka does not list its topics" in page


def test_what_is_to_be_mended_comes_first_and_is_counted(viewer: Client, coupon: Coupon) -> None:
    response = viewer.get("/ops/preflight/SUMMER")
    verdicts = [str(line.verdict) for line in response.context["lines"]]
    assert verdicts == sorted(verdicts, key=["no-go", "warn", "unknown", "go"].index)
    assert f"{verdicts.count('no-go')} no-go, " in response.content.decode()


def test_an_unknown_coupon_and_one_of_a_rehearsal_have_no_page(viewer: Client, make_coupon: MakeCoupon) -> None:
    make_coupon(coupon_type="rehearsal-1", rehearsal=True)
    for name in ("WINTER", "rehearsal-1", "not a type", "x" * 65):
        assert viewer.get(f"/ops/preflight/{name}").status_code == 404
        assert viewer.post(f"/ops/preflight/{name}/test-alert").status_code == 403


@pytest.mark.parametrize("expect", ["", "0", "-1", "9" * 30, "many", "%00"])
def test_any_number_is_taken(viewer: Client, coupon: Coupon, expect: str) -> None:
    assert viewer.get(f"/ops/preflight/SUMMER?expect={expect}").status_code == 200


def test_the_page_works_while_redis_is_away(viewer: Client, coupon: Coupon, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = get_redis_connection("default").connection_pool
    monkeypatch.setitem(pool.connection_kwargs, "port", free_port())
    pool.disconnect()
    page = viewer.get("/ops/preflight/SUMMER").content.decode()
    assert "cannot be checked" in page


def test_an_operator_sends_a_test_alert_and_a_viewer_does_not(operator: Client, viewer: Client, coupon: Coupon) -> None:
    address = "/ops/preflight/SUMMER/test-alert"
    assert viewer.post(address).status_code == 403
    assert "Send a test alert" not in viewer.get("/ops/preflight/SUMMER").content.decode()
    assert not Alert.objects.exists()

    assert "Send a test alert" in operator.get("/ops/preflight/SUMMER").content.decode()
    assert operator.get(address).status_code == 405
    for reason in (" ", "x" * 501, "\0"):
        operator.post(address, {"reason": reason})
        assert messages_of(operator.get("/ops/preflight/SUMMER"))[-1].startswith("Reason:")
    assert not Alert.objects.exists()
    sent = operator.post(address, {"reason": "before the sale"})
    assert (sent.status_code, sent.headers["Location"]) == (303, "/ops/preflight/SUMMER")
    assert list(AlertNotification.objects.order_by("id").values_list("phase", flat=True)) == ["start", "end"]
    recorded = OperatorAction.objects.get()
    assert (recorded.action, recorded.actor, recorded.reason) == ("test_alert.send", "olga", "before the sale")
