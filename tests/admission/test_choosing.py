"""Whoever makes a coupon chooses how it lets requests in."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from django.core.management import call_command
from django.test import Client

from coupons.admission import ADMISSIONS
from couponsite.auth.tokens import issue_access_token

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("admission", ADMISSIONS)
def test_a_coupon_is_created_with_its_admission_and_says_so(admission: str, client: Client) -> None:
    out = StringIO()
    call_command("create_coupon", "SUMMER", "--quantity", "5", "--admission", admission, stdout=out)
    path = f"/api/v1/coupons/{json.loads(out.getvalue())['couponId']}"
    told = client.get(path, headers={"Authorization": f"Bearer {issue_access_token(1)}"}).json()
    assert (told["admission"], told["remaining"]) == (admission, 5)


@pytest.mark.parametrize("admission", ADMISSIONS)
def test_the_admin_offers_it(admission: str, admin_client: Client) -> None:
    page = admin_client.get("/admin/coupons/coupon/add/").content.decode()
    assert f'<option value="{admission}"' in page
