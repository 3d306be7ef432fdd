from __future__ import annotations

import pytest
from django.test import Client
from pytest_django.fixtures import Settings


@pytest.fixture(autouse=True)
def behind_a_proxy(settings: Settings) -> None:
    settings.HTTPS_REDIRECT = True
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    settings.ALLOWED_HOSTS = ["shop.example", "localhost", "127.0.0.1", "[::1]"]


def test_plain_http_is_redirected(client: Client) -> None:
    response = client.get("/admin/login/?next=/", HTTP_HOST="shop.example")
    assert (response.status_code, response["Location"]) == (301, "https://shop.example/admin/login/?next=/")


def test_https_at_the_proxy_is_not_redirected(db: None, client: Client) -> None:
    response = client.get("/admin/login/", HTTP_HOST="shop.example", HTTP_X_FORWARDED_PROTO="https")
    assert response.status_code == 200
    assert response.cookies["csrftoken"]["secure"]
    assert response["Strict-Transport-Security"]


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000"])
def test_loopback_is_served_plain_with_cookies_that_come_back(db: None, client: Client, host: str) -> None:
    response = client.get("/admin/login/", HTTP_HOST=host)
    assert response.status_code == 200
    assert not response.cookies["csrftoken"]["secure"]


def test_a_redirect_leads_to_our_hosts_only(client: Client) -> None:
    assert client.get("/", HTTP_HOST="evil.example").status_code == 400


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probes_are_not_redirected(db: None, client: Client, path: str) -> None:
    assert client.get(path, HTTP_HOST="shop.example").status_code == 200
