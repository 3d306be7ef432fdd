"""The group ``viewers`` opens every page of ours and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Group, Permission
from django.core.management import call_command
from django.db import transaction
from django.db.models import Model
from django.forms.models import model_to_dict
from django.test import Client
from django.urls import reverse

from coupons.issuance.issue import issue_many
from coupons.messages import read_issue_task
from coupons.models import Coupon, CouponLedgerEntry, IssueRequest, Notification, RolloutChange, UserCoupon
from couponsite.admin.viewers import VIEWERS
from kafka_bridge.models import Alert, DeadLetter, OutboxMessage
from orders.models import Order, OrderLine, OrderMinute, Product, StoredOrder
from tests.admin.pages import html_of, rows_of
from tests.support.messages import message, request_body, requests

OURS = {"coupons", "kafka_bridge", "orders"}
REGISTERED = sorted(
    (model for model in admin.site._registry if model._meta.app_label in OURS), key=lambda model: model._meta.label
)
WRITTEN_BY_THE_SERVICE = [
    UserCoupon, IssueRequest, Notification, OutboxMessage, DeadLetter, Alert, Order, StoredOrder, OrderMinute,
]  # fmt: skip

every_model = pytest.mark.parametrize("model", REGISTERED, ids=lambda model: model._meta.label)


def address(model: type[Model], page: str, *arguments: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=arguments)


@pytest.fixture
def a_row_of_each(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon()
    with transaction.atomic():
        issue_many([read_issue_task(message) for message in requests(coupon, [7])])
    product = Product.objects.create(name="Socks", price=5000)
    order = Order.objects.create(user_id=7, total_amount=5000, pay_amount=5000, expires_at=datetime.now(UTC))
    OrderLine.objects.create(order=order, product=product, name="Socks", unit_price=5000, quantity=1)
    DeadLetter.objects.create(
        consumer_group="issue", topic="t", partition=0, offset=0, message_timestamp=0, headers=b"[]", payload=b"{"
    )
    RolloutChange.objects.create(flag="issue-worker", percent=30)
    CouponLedgerEntry.objects.create(
        user_coupon=UserCoupon.objects.get(), order_id=order.pk, step=CouponLedgerEntry.Step.HELD, cause="order created"
    )
    Notification.objects.create(event_id=uuid4(), user_id=7, template_code="COUPON_ISSUED", variables={"name": "Socks"})
    Alert.objects.create(rule="lag", severity="warning", summary="The issuer is behind.", runbook="docs/runbooks.md")
    StoredOrder.objects.create(order_id=order.pk, user_id=7, items=[], paid_at=datetime.now(UTC))
    OrderMinute.objects.create(minute=datetime(2026, 7, 1, 3, 0, tzinfo=UTC), completed=1, amount=5000)


@pytest.fixture
def row(model: type[Model], a_row_of_each: None) -> Model:
    found = model._default_manager.first()
    assert found is not None, "a_row_of_each makes none"
    return found


def test_the_page_of_a_request_shows_when_it_was_published(viewer: Client, make_coupon: Callable[..., Coupon]) -> None:
    published = message(request_body(make_coupon(), 7), timestamp=1_767_225_600_123)
    with transaction.atomic():
        issue_many([read_issue_task(published)])
    page = html_of(viewer.get(address(IssueRequest, "change", IssueRequest.objects.get().pk)))
    assert "2026-01-01T00:00:00.123" in page


@every_model
def test_a_viewer_opens_every_list_and_detail(viewer: Client, model: type[Model], row: Model) -> None:
    assert row in rows_of(viewer.get(address(model, "changelist")))
    page = html_of(viewer.get(address(model, "change", row.pk)))
    assert 'name="_save"' not in page
    html_of(viewer.get(address(model, "history", row.pk)))


@every_model
def test_a_viewer_changes_nothing(viewer: Client, model: type[Model], row: Model) -> None:
    before = model_to_dict(row)
    everything = dict.fromkeys(before, "1") | {"name": "Mine", "_save": "Save"}
    assert viewer.get(address(model, "add")).status_code == 403
    assert viewer.post(address(model, "add"), everything).status_code == 403
    assert viewer.post(address(model, "change", row.pk), everything).status_code == 403
    assert viewer.post(address(model, "delete", row.pk), {"post": "yes"}).status_code == 403
    viewer.post(address(model, "changelist"), {"action": "delete_selected", "_selected_action": row.pk, "post": "yes"})
    assert model_to_dict(model._default_manager.get()) == before


@pytest.mark.parametrize("model", WRITTEN_BY_THE_SERVICE, ids=lambda model: model._meta.label)
def test_not_even_a_superuser_writes_what_the_service_writes(superuser: Client, model: type[Model], row: Model) -> None:
    before = model_to_dict(row)
    html_of(superuser.get(address(model, "change", row.pk)))
    assert superuser.get(address(model, "add")).status_code == 403
    assert superuser.post(address(model, "change", row.pk), {"status": "USED"}).status_code == 403
    assert superuser.post(address(model, "delete", row.pk), {"post": "yes"}).status_code == 403
    superuser.post(
        address(model, "changelist"), {"action": "delete_selected", "_selected_action": row.pk, "post": "yes"}
    )
    assert model_to_dict(model._default_manager.get()) == before


@pytest.mark.usefixtures("db")
def test_the_group_has_the_view_permissions_of_our_models_and_no_other() -> None:
    granted = Group.objects.get(name=VIEWERS).permissions.values_list("content_type__app_label", "codename")
    ours = {
        (model._meta.app_label, f"view_{model._meta.model_name}")
        for model in apps.get_models()
        if model._meta.app_label in OURS
    }
    assert set(granted) == ours


@pytest.mark.usefixtures("db")
def test_the_next_migrate_brings_back_a_group_that_was_lost_and_keeps_what_was_granted_besides() -> None:
    extra = Permission.objects.get(codename="view_logentry")
    Group.objects.get(name=VIEWERS).permissions.set([extra])
    call_command("migrate", verbosity=0)
    permissions = Group.objects.get(name=VIEWERS).permissions
    assert permissions.filter(codename="view_coupon").exists()
    assert extra in permissions.all()


def test_a_viewer_sees_no_accounts(viewer: Client) -> None:
    assert viewer.get("/admin/auth/user/").status_code == 403


@pytest.mark.usefixtures("db")
def test_without_a_login_there_is_no_page(client: Client) -> None:
    for model in REGISTERED:
        response = client.get(address(model, "change", UUID(int=1)))
        assert (response.status_code, response["Location"].split("?")[0]) == (302, "/admin/login/")
