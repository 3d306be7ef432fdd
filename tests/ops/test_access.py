"""Pages for operators are for staff, each by its permission."""

from __future__ import annotations

import re

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from pytest_django import Settings

from tests.admin.pages import html_of
from tests.ops.conftest import signed_in

PAGES = [
    "/ops/", "/ops/panels", "/ops/alerts", "/ops/groups", "/ops/processes", "/ops/blocks", "/ops/holds", "/ops/audit",
    "/ops/redrives", "/ops/docs/operations.md",
]  # fmt: skip
POSTS = [
    "/ops/alerts/silence", "/ops/alerts/unsilence", "/ops/groups/control", "/ops/holds/hold", "/ops/holds/release",
    "/ops/holds/retry", "/ops/redrives/create", "/ops/redrives/1/start",
]  # fmt: skip

every_page = pytest.mark.parametrize("path", PAGES)


@pytest.mark.parametrize("path", PAGES + POSTS)
def test_a_stranger_is_sent_to_the_login_and_back(db: None, client: Client, path: str) -> None:
    """From a form, which the session may have ended before, to the dashboard: its address answers no GET."""
    response, back_to = (client.get(path), path) if path in PAGES else (client.post(path), "/ops/")
    assert (response.status_code, response["Location"]) == (302, f"/admin/login/?next={back_to}")


@pytest.mark.parametrize("path", PAGES)
def test_a_user_who_is_no_staff_is_refused(db: None, path: str) -> None:
    response = signed_in(User.objects.create_user("ursula")).get(path)
    assert (response.status_code, "for staff" in response.content.decode()) == (403, True)


@every_page
def test_staff_without_the_permission_are_told_which_is_missing(db: None, path: str) -> None:
    response = signed_in(User.objects.create_user("stan", is_staff=True)).get(path)
    assert response.status_code == 403
    assert re.search(r"(kafka_bridge|coupons)\.view_\w+", response.content.decode())


@every_page
def test_a_viewer_sees_every_page(viewer: Client, path: str) -> None:
    response = viewer.get(path)
    html_of(response)
    assert "no-store" in response["Cache-Control"]


@every_page
def test_a_page_needs_no_other_site_and_no_inline_code(viewer: Client, path: str) -> None:
    page = html_of(viewer.get(path))
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)
    assert not re.findall(r"<script(?![^>]* src=)|<style| style=| on\w+=", page)


def test_the_assets_are_served(viewer: Client) -> None:
    addresses = re.findall(r'(?:href|src)="(/static/[^"]+)"', html_of(viewer.get("/ops/")))
    assert {"/static/couponsite/ops.css", "/static/couponsite/ops.js"} <= set(addresses)
    for address in addresses:
        response = viewer.get(address)
        assert response.status_code == 200
        response.close()


def test_the_navigation_shows_what_the_user_may_see_and_where_it_is(db: None) -> None:
    user = User.objects.create_user("stan", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_alert"))
    page = html_of(signed_in(user).get("/ops/alerts"))
    assert '<a href="/ops/alerts" aria-current="page">Alerts</a>' in page
    assert '<a href="/ops/">Dashboard</a>' in page
    assert "/ops/processes" not in page


def test_the_environment_is_named_on_every_page(viewer: Client, settings: Settings) -> None:
    assert 'class="environment"' not in html_of(viewer.get("/ops/"))
    settings.ENVIRONMENT_NAME = "staging <1>"
    page = html_of(viewer.get("/ops/alerts"))
    assert "staging &lt;1&gt;</span>" in page
    assert "<title>staging &lt;1&gt; · Alerts" in page


def test_a_page_only_reads(viewer: Client) -> None:
    assert viewer.post("/ops/").status_code == 405
    assert viewer.get("/ops/alerts/silence").status_code == 405


def test_a_link_is_shown_to_those_only_who_have_all_permissions_of_its_page(db: None) -> None:
    user = User.objects.create_user("stan", is_staff=True)
    user.user_permissions.add(*Permission.objects.filter(codename__in=["view_alert", "view_issuerequest"]))
    client = signed_in(user)
    assert 'href="/ops/requests"' not in html_of(client.get("/ops/alerts"))
    user.user_permissions.add(*Permission.objects.filter(codename__in=["view_usercoupon", "view_outboxmessage"]))
    assert 'href="/ops/requests"' in html_of(client.get("/ops/alerts"))


@pytest.mark.parametrize("path", ["/ops/requests/abc", "/ops/orders/abc", "/ops/requests/0", "/ops/requests/a%00b"])
def test_an_address_without_a_proper_id_leads_to_the_search(viewer: Client, path: str) -> None:
    response = viewer.get(path)
    assert response.status_code == 404
    page = response.content.decode()
    assert "is not an id." in page
    assert 'aria-label="Operations"' in page
    assert 'role="search"' in page
