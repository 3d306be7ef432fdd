"""The share of the issue worker, as an operator sets it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.core.cache import caches
from django.core.management import call_command
from django.test import Client
from waffle.models import Flag

from coupons.coupon_cache import coupon_cache
from coupons.models import Coupon
from tests.admin.pages import errors_of, form_of

ADD = "/admin/waffle/flag/add/"


def share_of(coupon: Coupon) -> int:
    coupon_cache.clear()
    entry = coupon_cache.get(coupon.id)
    assert entry is not None
    return entry.rollout_permille


@pytest.fixture
def gate(make_coupon: Callable[..., Coupon]) -> Coupon:
    return make_coupon(admission="gate", coupon_type="SUMMER")


def add(superuser: Client, **values: str) -> dict[str, list[str]]:
    form = form_of(superuser.get(ADD), "flag_form")
    assert form.keys() >= {"name", "everyone", "percent"}
    return errors_of(superuser.post(ADD, form | values))


def test_an_operator_sets_the_share_of_every_coupon_and_of_one(superuser: Client, gate: Coupon) -> None:
    assert add(superuser, name="issue-worker", percent="30.5") == {}
    assert share_of(gate) == 305
    assert add(superuser, name="issue-worker-SUMMER", everyone="true") == {}
    assert share_of(gate) == 1000
    page = f"/admin/waffle/flag/{Flag.objects.get(name='issue-worker-SUMMER').pk}/change/"
    form = form_of(superuser.get(page), "flag_form")
    assert errors_of(superuser.post(page, form | {"everyone": "false"})) == {}
    assert share_of(gate) == 0


def test_a_flag_that_would_say_nothing_is_refused(superuser: Client, gate: Coupon) -> None:
    for name in ("issue-worker-WINTER", "SUMMER", "my-issue-worker-SUMMER", "issue-worker-"):
        assert "issue-worker-<coupon type>" in add(superuser, name=name)["name"][0]


def test_saving_a_flag_does_not_need_redis(
    gate: Coupon, monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: Callable[..., object]
) -> None:
    def away(*_arguments: object) -> None:
        raise ConnectionError("Redis is away")

    monkeypatch.setattr(caches["default"], "delete_many", away)
    with django_capture_on_commit_callbacks(execute=True):  # type: ignore[attr-defined]
        Flag.objects.create(name="issue-worker", everyone=True)


def test_waffles_own_command_sets_the_share(gate: Coupon) -> None:
    call_command("waffle_flag", "issue-worker-SUMMER", "--create", "--percent", "30", verbosity=0)
    assert share_of(gate) == 300
    call_command("waffle_flag", "issue-worker-SUMMER", "--deactivate", verbosity=0)
    assert share_of(gate) == 0
