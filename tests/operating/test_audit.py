"""What operators do is in the audit trail: by whom, to what, why, before and after, and in the change's transaction."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.db.models import Model
from django.db.models.functions import Now
from django.test import Client

from common.postgres.clock import isoformat_z
from coupons.controls import Action, coupon_control, coupon_create
from coupons.models import Coupon, CouponControl, RolloutChange
from coupons.rollout import rollout_set
from kafka_bridge.models import AlertSilence, HeldMessage, OperatorAction, OutboxHold, ProcessHeartbeat
from kafka_bridge.operating.audit import record_action
from kafka_bridge.operating.heartbeat import Heartbeat
from kafka_bridge.operating.operator_holds import hold_messages, hold_release
from kafka_bridge.operating.processes import silent_processes_forget
from kafka_bridge.operating.silences import end_silence, silence_rule
from kafka_bridge.operating.worker_command import shell_user
from orders.models import Product
from tests.admin.conftest import superuser  # noqa: F401
from tests.admin.pages import errors_of, form_of

pytestmark = pytest.mark.django_db

CONTROL_ID = UUID(int=7)
Recorded = tuple[str, str, str, str, Any, Any]


def recorded() -> list[Recorded]:
    """The trail, oldest first: actor, action, subject, reason, before and after."""
    rows = OperatorAction.objects.order_by("id")
    return list(rows.values_list("actor", "action", "subject", "reason", "before", "after"))


def control(coupon: Coupon, action: Action, **values: Any) -> Coupon:
    return coupon_control(action=action, id_or_type=coupon.id, actor="olga", **values)


def test_a_control_is_recorded_with_the_fields_that_it_changed(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(coupon_type="SUMMER")
    control(coupon, Action.RESTOCK, quantity=5, reason="more came in")
    control(coupon, Action.PAUSE)
    closed = control(coupon, Action.CLOSE)
    assert closed.closes_at is not None
    closes_at = isoformat_z(closed.closes_at)
    assert recorded() == [
        ("olga", "coupon.restock", "coupon SUMMER", "more came in", {"total_quantity": 10}, {"total_quantity": 15}),
        ("olga", "coupon.pause", "coupon SUMMER", "", {"paused": False}, {"paused": True}),
        ("olga", "coupon.close", "coupon SUMMER", "", {"closes_at": None}, {"closes_at": closes_at}),
    ]


def test_a_control_that_is_in_effect_is_recorded_without_a_change(make_coupon: Callable[..., Coupon]) -> None:
    control(make_coupon(coupon_type="SUMMER"), Action.RESUME)
    assert recorded() == [("olga", "coupon.resume", "coupon SUMMER", "", None, None)]


def test_a_control_whose_id_is_repeated_or_that_is_refused_is_not_recorded(make_coupon: Callable[..., Coupon]) -> None:
    coupon = make_coupon(coupon_type="SUMMER")
    for _ in range(3):
        call_command("control_coupon", "SUMMER", "restock", "--quantity", "5", "--id", str(CONTROL_ID))
    for refused in (("restock", "--quantity", "6", "--id", str(CONTROL_ID)), ("restock", "--quantity", "0")):
        with pytest.raises(CommandError):
            call_command("control_coupon", "SUMMER", *refused)
    assert [(actor, action) for actor, action, *_ in recorded()] == [(shell_user(), "coupon.restock")]
    assert control(coupon, Action.OPEN).total_quantity == 15


def test_a_coupon_is_recorded_once_it_is_created_and_a_repeat_is_not() -> None:
    for _ in range(2):
        call_command("create_coupon", "SPRING", "--quantity", "9007199254740993", "--percent", "20")
    ((actor, action, subject, _, before, after),) = recorded()
    assert (actor, action, subject, before) == (shell_user(), "coupon.create", "coupon SPRING", None)
    # Exact, though no double holds it.
    assert after["total_quantity"] == 9007199254740993
    assert (after["discount_type"], after["discount_value"], after["closes_at"]) == ("PERCENT", 20, None)


@pytest.mark.usefixtures("db")
def test_what_the_admin_does_to_a_coupon_is_recorded_with_the_changed_fields(
    superuser: Client,  # noqa: F811
    make_coupon: Callable[..., Coupon],
) -> None:
    address = f"/admin/coupons/coupon/{make_coupon(coupon_type='SUMMER', name='Ice').pk}/change/"
    form = form_of(superuser.get(address))
    assert errors_of(superuser.post(address, form)) == {}
    assert recorded() == []
    changes = {"name": "Cream", "closes_at_0": "2036-01-01", "closes_at_1": "00:00:00"}
    assert errors_of(superuser.post(address, form | changes)) == {}
    assert recorded() == [
        (
            "olga", "coupon.edit", "coupon SUMMER", "",
            {"name": "Ice", "closes_at": None}, {"name": "Cream", "closes_at": "2036-01-01T00:00:00Z"},
        )
    ]  # fmt: skip
    form = form_of(superuser.get("/admin/coupons/coupon/add/"))
    given = {"coupon_type": "SPRING", "name": "x", "total_quantity": "3", "discount_type": "FIXED"}
    assert errors_of(superuser.post("/admin/coupons/coupon/add/", form | given | {"discount_value": "1000"})) == {}
    *_, (actor, action, subject, _, before, after) = recorded()
    assert (actor, action, subject, before) == ("olga", "coupon.create", "coupon SPRING", None)
    assert (after["total_quantity"], after["discount_value"]) == (3, 1000)


def test_products_are_recorded_by_command_and_admin(superuser: Client) -> None:  # noqa: F811
    call_command("create_product", "Socks", "--price", "5000")
    product = Product.objects.get()
    address = f"/admin/orders/product/{product.pk}/change/"
    superuser.post(address, {"name": "Socks", "price": "4000"})
    assert recorded() == [
        (shell_user(), "product.create", f"product {product.pk}", "", None, {"name": "Socks", "price": 5000}),
        ("olga", "product.edit", f"product {product.pk}", "", {"price": 5000}, {"price": 4000}),
    ]


def test_the_rollout_is_recorded_by_command_and_admin(superuser: Client, gate_coupon: Coupon) -> None:  # noqa: F811
    call_command("set_rollout", "issue-worker", "12.5", "--reason", "the first users")
    superuser.post("/admin/coupons/rolloutchange/add/", {"flag": "issue-worker", "percent": "", "reason": "enough"})
    assert recorded() == [
        (shell_user(), "rollout.set", "flag issue-worker", "the first users", None, {"percent": "12.5"}),
        ("olga", "rollout.set", "flag issue-worker", "enough", {"percent": "12.5"}, {"percent": None}),
    ]


def test_silences_are_recorded_and_one_that_is_over_is_not_ended() -> None:
    until = isoformat_z(silence_rule(rule="lag", seconds=60, reason="works", actor="olga"))
    silence = {"until": until, "reason": "works", "actor": "olga"}
    assert end_silence(rule="lag", actor="victor", reason="done")
    assert not end_silence(rule="lag", actor="victor", reason="done")
    assert recorded() == [
        ("olga", "alert.silence", "rule lag", "works", None, silence),
        ("victor", "alert.unsilence", "rule lag", "done", silence, None),
    ]


def test_each_forgotten_process_is_recorded() -> None:
    for role in ("relay", "orders"):
        Heartbeat(role).beat()
    ProcessHeartbeat.objects.update(seen_at=Now() - timedelta(minutes=10))
    names = silent_processes_forget(actor="olga")
    assert len(names) == 2
    assert recorded() == [("olga", "process.forget", name, "", None, None) for name in names]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("redis_flushed")
def test_long_commands_are_recorded_when_they_begin(tmp_path: Path, make_coupon: Callable[..., Coupon]) -> None:
    make_coupon(coupon_type="SUMMER")
    users = tmp_path / "users.csv"
    users.write_text("userId\n1\n2\n")
    call_command("issue_batch", "SUMMER", str(users), "--id", "crm", "--no-wait")
    call_command("reconcile", "--repair")
    call_command("reconcile")
    call_command("rebuild_views")
    assert [(action, subject, after) for _, action, subject, _, _, after in recorded()] == [
        ("coupon.issue_batch", "coupon SUMMER", {"batchId": "crm", "lines": 2}),
        ("service.repair", "reconcile", {"patienceSeconds": 60}),
        ("views.rebuild", "ranking and statuses", {"fromTopics": False}),
    ]


def everything(*models: type[Model]) -> list[list[Any]]:
    return [list(model._default_manager.order_by("pk").values()) for model in models]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "act",
    [
        lambda coupon: control(coupon, Action.PAUSE),
        lambda coupon: coupon_create(
            actor="olga", coupon_type="NEW", name="x", discount_type="FIXED", discount_value=1, total_quantity=1
        ),
        lambda coupon: rollout_set(RolloutChange(flag="issue-worker", percent=1, actor="olga")),
        lambda coupon: silence_rule(rule="other", seconds=60, reason="works", actor="olga"),
        lambda coupon: end_silence(rule="lag", actor="olga", reason="done"),
        lambda coupon: silent_processes_forget(actor="olga"),
        lambda coupon: hold_messages(topic="order-completed", key=None, actor="olga", reason="wrong price"),
        lambda coupon: hold_release(hold_id=OutboxHold.objects.get().pk, actor="olga", reason="corrected"),
    ],
    ids=["control", "create", "rollout", "silence", "unsilence", "forget", "hold", "release"],
)
def test_what_cannot_be_recorded_does_not_happen(act: Callable[[Coupon], Any], make_coupon: Any) -> None:
    coupon = make_coupon(coupon_type="SUMMER")
    AlertSilence.objects.create(rule="lag", until=Now() + timedelta(hours=1), reason="", actor="victor")
    OutboxHold.objects.create(topic="order-cancelled", reason="")
    Heartbeat("relay").beat()
    ProcessHeartbeat.objects.update(seen_at=Now() - timedelta(minutes=10))
    models = (Coupon, CouponControl, RolloutChange, AlertSilence, ProcessHeartbeat, OutboxHold, HeldMessage)
    before = everything(*models)
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TRIGGER full_disk BEFORE INSERT ON kafka_bridge_operatoraction"
            " FOR EACH ROW EXECUTE FUNCTION kafka_bridge_actions_are_append_only()"
        )
    try:
        with pytest.raises(DatabaseError):
            act(coupon)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER full_disk ON kafka_bridge_operatoraction")
    assert everything(*models) == before
    # The control: it is the record alone that fails.
    act(coupon)
    assert everything(*models) != before


@pytest.mark.parametrize(
    "statement", ["UPDATE kafka_bridge_operatoraction SET actor = 'x'", "DELETE FROM kafka_bridge_operatoraction"]
)
def test_the_trail_is_never_changed(statement: str) -> None:
    record_action(actor="olga", action="hold.create", subject="topic x")
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)
    assert OperatorAction.objects.get().actor == "olga"


def test_a_text_that_is_too_long_is_cut_since_an_action_must_not_fail_for_its_record() -> None:
    record_action(actor="a" * 200, action="hold.create", subject="s" * 400, reason="r" * 600)
    action = OperatorAction.objects.get()
    assert (len(action.actor), len(action.subject), len(action.reason)) == (150, 300, 500)


@pytest.mark.django_db(transaction=True)
def test_an_action_is_not_recorded_outside_the_transaction_of_its_change() -> None:
    with pytest.raises(transaction.TransactionManagementError):
        record_action(actor="olga", action="hold.create", subject="topic x")
    assert recorded() == []
