"""The pages around the tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from pytest_django import Settings

from tests.admin.pages import errors_of, form_of, html_of

PAGES = ["/admin/", "/admin/coupons/coupon/", "/admin/coupons/coupon/add/", "/admin/auth/user/", "/admin/auth/group/"]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_bears_our_name_and_needs_no_other_site(superuser: Client, path: str) -> None:
    page = html_of(superuser.get(path))
    assert "Flash coupons" in page
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)


def test_the_login_page_needs_no_other_site(client: Client) -> None:
    page = html_of(client.get("/admin/login/"))
    assert "Flash coupons" in page
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)


def test_the_assets_of_a_page_are_served(superuser: Client) -> None:
    page = html_of(superuser.get("/admin/coupons/coupon/add/"))
    addresses = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', page))
    assert addresses
    for address in addresses:
        response = superuser.get(address)
        assert response.status_code == 200, address
        response.close()


def test_the_assets_can_be_collected_under_hashed_names(settings: Settings, tmp_path: Path) -> None:
    settings.STATIC_ROOT = tmp_path
    settings.STORAGES = settings.STORAGES | {
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"}
    }
    call_command("collectstatic", interactive=False, verbosity=0)
    assert (tmp_path / "staticfiles.json").exists()


@pytest.mark.parametrize("extended", [{}, {"extended": "1"}])
def test_the_palette_finds_pages_by_name(superuser: Client, extended: dict[str, str]) -> None:
    assert "/admin/kafka_bridge/deadletter/" in html_of(superuser.get("/admin/search/", {"s": "Dead"} | extended))
    for nothing in ("\0", "x" * 5000, ""):
        html_of(superuser.get("/admin/search/", {"s": nothing, "page": "x"} | extended))


def test_the_palette_shows_a_viewer_only_what_a_viewer_may_open(viewer: Client) -> None:
    assert "/admin/kafka_bridge/deadletter/" in html_of(viewer.get("/admin/search/", {"s": "e"}))
    assert "/admin/auth/" not in html_of(viewer.get("/admin/search/", {"s": "e"}))


def test_an_account_is_created_and_changed(superuser: Client) -> None:
    new: dict[str, Any] = {
        "username": "vera",
        "usable_password": "true",
        "password1": "Tr-7yhgf",
        "password2": "Tr-7yhgf",
    }
    response = superuser.post("/admin/auth/user/add/", new)
    assert errors_of(response) == {}
    page = f"/admin/auth/user/{User.objects.get(username='vera').pk}/change/"
    form = form_of(superuser.get(page), "user_form") | {"is_staff": "on"}
    assert errors_of(superuser.post(page, form)) == {}
    assert User.objects.get(username="vera").is_staff


@pytest.mark.parametrize(
    "address",
    [
        "/admin/auth/user/?date_joined__year=0",
        "/admin/auth/user/?last_login__year__gt=99999999",
        "/admin/auth/user/?id__regex=(",
        "/admin/auth/group/?id__regex=(",
        "/admin/coupons/rolloutchange/?created_at__year=0",
        "/admin/coupons/rolloutchange/?id__regex=(",
    ],
)
def test_an_address_that_filters_by_nonsense_is_400(superuser: Client, address: str) -> None:
    assert superuser.get(address).status_code == 400


@pytest.mark.parametrize("filters", ["is_staff__exact=1", "groups__isnull=True", "is_active__exact=0&q=olga"])
def test_the_filters_of_users_work(superuser: Client, filters: str) -> None:
    assert superuser.get(f"/admin/auth/user/?{filters}").status_code == 200
