from __future__ import annotations

from io import StringIO
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from django.core.management import call_command
from django.test import Client

from coupons.models import Coupon

from .conftest import ALICE, Call


def test_the_schema_is_valid_and_without_warnings() -> None:
    call_command("spectacular", "--validate", "--fail-on-warn", stdout=StringIO())


@pytest.fixture
def schema(client: Client) -> dict[str, Any]:
    response = client.get("/api/schema")
    assert response.status_code == 200
    document: dict[str, Any] = response.json()
    return document


def check(schema: dict[str, Any], name: str, answer: Any) -> None:
    """That an answer has exactly the fields that the schema describes, each of its type."""

    def strict(part: Any) -> Any:
        if isinstance(part, list):
            return [strict(item) for item in part]
        if not isinstance(part, dict):
            return part
        part = {key: strict(value) for key, value in part.items()}
        if part.pop("nullable", False) and "type" in part:
            part["type"] = [part["type"], "null"]
        return part | ({"additionalProperties": False} if "properties" in part else {})

    jsonschema.validate(answer, strict(schema["components"]["schemas"][name]))


def test_the_answers_are_as_described(schema: dict[str, Any], coupon: Coupon, call: Call) -> None:
    accepted = call("POST", "/api/v1/coupons/issue-async", {"couponType": "SUMMER"})
    check(schema, "Accepted", accepted.json())
    check(schema, "RequestStatus", call("GET", accepted["Location"]).json())
    check(schema, "Coupon", call("GET", f"/api/v1/coupons/{coupon.pk}").json())
    check(schema, "CouponPage", call("GET", "/api/v1/coupons").json())
    coupon.user_coupons.create(user_id=ALICE, issued_at=coupon.opens_at)
    page = call("GET", f"/api/v1/users/{ALICE}/coupons").json()
    assert len(page["results"]) == 1
    check(schema, "UserCouponPage", page)
    check(schema, "Problem", call("GET", "/api/v1/coupons/9999").json())


def test_every_door_tells_of_problems_and_who_may_enter(schema: dict[str, Any]) -> None:
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert {"4XX", "5XX"} <= operation["responses"].keys()
            assert path.startswith("/api/v1/auth/") or {"bearer": []} in operation["security"]
