"""The share of the issue worker, as an operator sets it in the admin."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from coupons.models import Coupon, RolloutChange
from tests.admin.pages import errors_of, form_of, html_of, rows_of
from tests.support.rollout import share_of

LIST = "/admin/coupons/rolloutchange/"
ADD = f"{LIST}add/"


def add(client: Client, **values: str) -> dict[str, list[str]]:
    form = form_of(client.get(ADD), "rolloutchange_form")
    assert form.keys() >= {"flag", "percent", "reason"}
    return errors_of(client.post(ADD, form | values))


def test_an_operator_sets_the_share_of_every_coupon_and_of_one(superuser: Client, gate_coupon: Coupon) -> None:
    assert add(superuser, flag="issue-worker", percent="30.5") == {}
    assert share_of(gate_coupon) == 305
    assert add(superuser, flag="issue-worker-SUMMER", percent="100") == {}
    assert share_of(gate_coupon) == 1000
    assert add(superuser, flag="issue-worker-SUMMER", percent="0") == {}
    assert share_of(gate_coupon) == 0
    assert add(superuser, flag="issue-worker-SUMMER", percent="") == {}
    assert share_of(gate_coupon) == 305


def test_a_flag_that_would_say_nothing_is_refused(superuser: Client, gate_coupon: Coupon) -> None:
    for flag in ("issue-worker-WINTER", "SUMMER", "my-issue-worker-SUMMER", "issue-worker-"):
        assert "issue-worker-<coupon type>" in add(superuser, flag=flag)["flag"][0]


@pytest.mark.parametrize("percent", ["-0.1", "100.1", "30.55", "NaN", "all"])
def test_a_share_is_0_to_100_percent_in_tenths(superuser: Client, gate_coupon: Coupon, percent: str) -> None:
    assert "percent" in add(superuser, flag="issue-worker", percent=percent)
    assert share_of(gate_coupon) == 0


def test_the_list_shows_who_changed_the_share_from_what_to_what_and_why(superuser: Client, gate_coupon: Coupon) -> None:
    add(superuser, flag="issue-worker", percent="30", reason="the first users")
    add(superuser, flag="issue-worker-SUMMER", percent="50")
    add(superuser, flag="issue-worker", percent="99.9", reason="more of them")
    page = superuser.get(LIST)
    name = User.objects.get(is_superuser=True).username
    assert [
        (row.flag, row.previous and float(row.previous), float(row.percent), row.actor, row.reason)
        for row in rows_of(page)
    ] == [
        ("issue-worker", 30.0, 99.9, name, "more of them"),
        ("issue-worker-SUMMER", None, 50.0, name, ""),
        ("issue-worker", None, 30.0, name, "the first users"),
    ]
    assert "99.9" in html_of(page)
    assert [row.flag for row in rows_of(superuser.get(LIST, {"q": "issue-worker-SUMMER"}))] == ["issue-worker-SUMMER"]


def test_a_change_is_history_also_for_a_superuser(superuser: Client, gate_coupon: Coupon) -> None:
    add(superuser, flag="issue-worker", percent="30")
    page = f"{LIST}{RolloutChange.objects.get().pk}/"
    assert 'name="_save"' not in html_of(superuser.get(f"{page}change/"))
    assert superuser.post(f"{page}change/", {"flag": "issue-worker", "percent": "99"}).status_code == 403
    assert superuser.post(f"{page}delete/", {"post": "yes"}).status_code == 403
    assert share_of(gate_coupon) == 300


def test_an_operator_needs_only_the_permission_to_add(client: Client, gate_coupon: Coupon) -> None:
    olga = User.objects.create_user("olga", is_staff=True)
    olga.user_permissions.add(Permission.objects.get(codename="add_rolloutchange"))
    client.force_login(olga)
    assert add(client, flag="issue-worker", percent="30") == {}
    assert share_of(gate_coupon) == 300
