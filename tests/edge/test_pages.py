from __future__ import annotations

import re

import pytest
from django.test import Client

from coupons.models import Coupon


def test_the_start_page_shows_the_coupons(coupon: Coupon, client: Client) -> None:
    page = client.get("/").content.decode()
    assert "Summer" in page
    assert "10<span" in page
    assert ">Open<" in page


def test_the_start_page_says_how_to_make_the_first_coupon(db: None, client: Client) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "create_coupon" in page.content.decode()


def test_the_start_page_escapes_names(coupon: Coupon, client: Client) -> None:
    Coupon.objects.update(name="<script>alert(1)</script>")
    assert "<script>" not in client.get("/").content.decode()


@pytest.mark.parametrize("path", ["/", "/nowhere"])
def test_a_page_needs_no_other_site(db: None, client: Client, path: str) -> None:
    page = client.get(path).content.decode()
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)


def test_the_assets_of_a_page_are_served(db: None, client: Client) -> None:
    for address in re.findall(r'href="(/static/[^"]+)"', client.get("/").content.decode()):
        response = client.get(address)
        assert response.status_code == 200
        response.close()


def test_an_unknown_page_is_404_in_html(client: Client) -> None:
    response = client.get("/nowhere")
    assert (response.status_code, response["Content-Type"]) == (404, "text/html; charset=utf-8")


def test_a_form_without_csrf_token_is_403_in_html(db: None) -> None:
    response = Client(enforce_csrf_checks=True).post("/admin/login/", {"username": "x", "password": "y"})
    assert (response.status_code, response["Content-Type"]) == (403, "text/html; charset=utf-8")


@pytest.mark.parametrize("path", ["/admin/login/", "/api/docs"])
def test_the_other_pages_answer(db: None, client: Client, path: str) -> None:
    assert client.get(path).status_code == 200
