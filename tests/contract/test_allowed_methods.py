"""``Allow`` names the methods that a path answers and no other, in every answer that has it."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from couponsite.auth.tokens import issue_access_token

from .document import Document, calls

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
PAGES = ["/", "/admin", "/admin/", "/admin/login/", "/static/couponsite/icon.svg", "/nowhere", "/api/v1/nowhere"]


@pytest.fixture
def paths(cast: None, document: Document) -> list[str]:
    """Every path of the document, and the pages beside them."""
    return sorted({call.address for call in calls(document)}) + PAGES


def answers(client: Client, path: str, headers: dict[str, str]) -> dict[str, Any]:
    responses = {method: client.generic(method, path, b"", headers=headers) for method in METHODS}
    for response in responses.values():
        if response.streaming:
            response.close()
    return responses


def test_allow_names_what_is_answered(client: Client, paths: list[str]) -> None:
    # No user of the examples, for whom an order would be paid.
    token = {"Authorization": f"Bearer {issue_access_token(5)}"}
    for path in paths:
        by_method, without_token = answers(client, path, token), answers(client, path, {})
        answered = {method for method, response in by_method.items() if response.status_code != 405}
        for response in (*by_method.values(), *without_token.values()):
            if "Allow" in response:
                named = {name.strip() for name in response["Allow"].split(",")}
                assert named <= answered, path
                assert named == answered or response.status_code != 405, path
            else:
                assert response.status_code != 405, path
        # What can be read can be asked for its headers alone.
        assert by_method["HEAD"].status_code == by_method["GET"].status_code, path
