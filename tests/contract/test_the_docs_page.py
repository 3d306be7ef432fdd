"""The page of the documentation needs no other host: it works in a network of its own."""

from __future__ import annotations

import json
import re

import pytest
from django.test import Client

pytestmark = pytest.mark.django_db

_ASSET = re.compile(r'(?:src|href)="([^"]+)"')
_ELSEWHERE = re.compile(r"(?:https?:)?//[\w.-]+")


@pytest.fixture
def page(client: Client) -> str:
    return client.get("/api/docs").content.decode()


def loaded(client: Client, address: str) -> str:
    response = client.get(address)
    assert response.status_code == 200, address
    content = response.getvalue() if response.streaming else response.content
    response.close()
    return content.decode(errors="replace")


def test_the_page_names_no_other_host(page: str) -> None:
    assert not [address for address in _ELSEWHERE.findall(page) if not address.startswith("//#")]


def test_all_that_the_page_loads_is_ours(client: Client, page: str) -> None:
    addresses = _ASSET.findall(page)
    assert len([address for address in addresses if address.endswith(".js")]) == 2
    for address in addresses:
        content = loaded(client, address)
        if address.endswith(".css"):
            outside = re.findall(r"(?:url\(|@import\s)\s*[\"']?(?!data:)([^)\"';]+)", content)
            assert outside == []


def test_the_page_asks_no_public_validator(page: str) -> None:
    settings = re.search(r"const swaggerSettings = ({.*?});", page, re.DOTALL)
    assert settings is not None
    assert json.loads(settings[1])["validatorUrl"] is None


def test_the_document_names_no_other_host(client: Client) -> None:
    assert not _ELSEWHERE.findall(client.get("/api/schema").content.decode())
