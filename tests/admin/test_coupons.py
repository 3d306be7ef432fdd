"""Creating and changing coupons, alone and while others are at work on them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.db import transaction
from django.test import Client

from common.admin_base import BigTableAdmin
from coupons import admin
from coupons.controls import Action, coupon_control
from coupons.issuance.issue import issue_many
from coupons.messages import read_issue_task
from coupons.models import Coupon
from tests.admin.pages import errors_of, form_of, html_of, messages_of
from tests.support.messages import requests
from tests.support.names import TAKEN_NAMES
from tests.support.threads import OpenTransaction, in_another_session, wait_until_blocked

MakeCoupon = Callable[..., Coupon]

LIST = "/admin/coupons/coupon/"
ADD = "/admin/coupons/coupon/add/"

SPRING = {
    "coupon_type": "SPRING", "name": "Spring", "admission": "queue", "total_quantity": "100",
    "opens_at_0": "2026-03-01", "opens_at_1": "00:00:00", "closes_at_0": "", "closes_at_1": "",
    "discount_type": "PERCENT", "discount_value": "10", "discount_cap": "", "min_order_amount": "0",
    "valid_days": "", "refund_policy": "BURN",
}  # fmt: skip


def page_of(coupon: Coupon) -> str:
    return f"{LIST}{coupon.pk}/change/"


def change(client: Client, coupon: Coupon, **changes: str) -> Any:
    """Opens the page of a coupon and saves it with changes."""
    return client.post(page_of(coupon), form_of(client.get(page_of(coupon))) | changes)


def issue(coupon: Coupon, *user_ids: int) -> None:
    with transaction.atomic():
        issue_many([read_issue_task(message) for message in requests(coupon, user_ids)])


def test_the_list_shows_stock_window_and_state(superuser: Client, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=1000, closes_at=datetime(2099, 5, 6, 7, 8, 9, tzinfo=UTC))
    Coupon.objects.update(issued=301, reserved=22)
    page = html_of(superuser.get(LIST))
    for text in (coupon.coupon_type, "OPEN", "1000", "301", "22", "677", "2099-05-06 07:08:09", "queue"):
        assert text in page


def test_a_coupon_is_created(superuser: Client) -> None:
    assert errors_of(superuser.post(ADD, SPRING)) == {}
    coupon = Coupon.objects.get(coupon_type="SPRING")
    assert (coupon.total_quantity, coupon.issued, coupon.reserved) == (100, 0, 0)
    assert coupon.opens_at == datetime(2026, 3, 1, tzinfo=UTC)


def test_a_new_coupon_opens_now_unless_told_otherwise(superuser: Client) -> None:
    form = form_of(superuser.get(ADD)) | {"coupon_type": "SPRING", "name": "x", "total_quantity": "1"}
    assert errors_of(superuser.post(ADD, form | {"discount_type": "FIXED", "discount_value": "1000"})) == {}
    age = datetime.now(UTC) - Coupon.objects.get().opens_at
    assert 0 <= age.total_seconds() < 60


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"coupon_type": "no spaces"}, "coupon_type", "A-Z a-z 0-9 _ -"),
        ({"coupon_type": "x" * 65}, "coupon_type", "64"),
        ({"coupon_type": "N\0L"}, "coupon_type", "Null"),
        ({"discount_value": "0"}, "discount_value", "1 to 100"),
        ({"discount_value": "101"}, "discount_value", "1 to 100"),
        ({"discount_type": "FIXED", "discount_value": "0"}, "discount_value", "at least 1 won"),
        ({"discount_type": "FIXED", "discount_cap": "5"}, "discount_cap", "Only a percentage"),
        ({"discount_cap": "0"}, "discount_cap", "at least 1 won"),
        ({"min_order_amount": "-1"}, "min_order_amount", "not negative"),
        ({"total_quantity": "-1"}, "total_quantity", "not negative"),
        ({"total_quantity": "9" * 30}, "total_quantity", "less than or equal"),
        ({"total_quantity": "many"}, "total_quantity", "whole number"),
        ({"closes_at_0": "2026-02-28", "closes_at_1": "23:59:59"}, "closes_at", "before it opens"),
        ({"opens_at_0": "", "opens_at_1": ""}, "opens_at", "required"),
        ({"valid_days": "0"}, "valid_days", "From 1 to"),
        ({"valid_days": "2000000000"}, "valid_days", "From 1 to"),
        ({"admission": "magic"}, "admission", "valid choice"),
        ({"name": "\u200d\u200b"}, "name", "visible"),
        ({"name": "\u3000"}, "name", "required"),
        ({"name": "a\x1b[31mb"}, "name", "control characters"),
        ({"name": "a\u202eb"}, "name", "direction"),
        ({"name": "x" * 201}, "name", "200"),
        ({"opens_at_0": "1969-12-31"}, "opens_at", "1970 to 9998"),
        ({"closes_at_0": "9999-01-01", "closes_at_1": "00:00:00"}, "closes_at", "1970 to 9998"),
    ],
)
def test_what_the_table_would_refuse_is_said_at_the_field(
    superuser: Client, changes: dict[str, str], field: str, words: str
) -> None:
    errors = errors_of(superuser.post(ADD, SPRING | changes))
    assert list(errors) == [field]
    assert any(words in message for message in errors[field]), errors
    assert not Coupon.objects.exists()


@pytest.mark.parametrize("name", TAKEN_NAMES)
def test_a_name_of_any_language_is_taken_as_it_is(superuser: Client, name: str) -> None:
    assert errors_of(superuser.post(ADD, SPRING | {"name": name})) == {}
    assert Coupon.objects.get().name == name


def test_a_type_is_given_once(superuser: Client) -> None:
    superuser.post(ADD, SPRING)
    assert list(errors_of(superuser.post(ADD, SPRING))) == ["coupon_type"]


def test_the_type_is_fixed_after_creation(superuser: Client, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(coupon_type="FIRST")
    assert errors_of(change(superuser, coupon, coupon_type="SECOND", name="Other")) == {}
    coupon.refresh_from_db()
    assert (coupon.coupon_type, coupon.name) == ("FIRST", "Other")


def test_the_counters_are_not_to_be_edited(superuser: Client, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    change(superuser, coupon, issued="7", reserved="3", remaining="0", name="Other")
    coupon.refresh_from_db()
    assert (coupon.issued, coupon.reserved, coupon.name) == (0, 0, "Other")


def test_a_coupon_is_not_deleted(superuser: Client, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    assert superuser.post(f"{LIST}{coupon.pk}/delete/", {"post": "yes"}).status_code == 403
    superuser.post(LIST, {"action": "delete_selected", "_selected_action": str(coupon.pk), "post": "yes"})
    assert Coupon.objects.exists()


def test_every_change_is_in_the_history(superuser: Client, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    change(superuser, coupon, paused="on")
    assert "Paused" in LogEntry.objects.get().get_change_message()
    assert "Paused" in html_of(superuser.get(f"{LIST}{coupon.pk}/history/"))


def test_a_change_that_names_no_shown_values_is_taken_as_it_is(superuser: Client, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    assert errors_of(superuser.post(page_of(coupon), SPRING | {"total_quantity": "25"})) == {}
    coupon.refresh_from_db()
    assert coupon.total_quantity == 25


def test_the_stock_does_not_go_below_what_is_taken(superuser: Client, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=10)
    Coupon.objects.update(issued=3, reserved=2)
    assert errors_of(change(superuser, coupon, total_quantity="4")) == {
        "total_quantity": ["3 units are issued and 2 reserved: at least 5."]
    }
    assert errors_of(change(superuser, coupon, total_quantity="5")) == {}


# What others changed while the page was open.


def test_what_the_operator_did_not_touch_keeps_what_others_gave_it(superuser: Client, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=10)
    form = form_of(superuser.get(page_of(coupon)))
    Coupon.objects.update(total_quantity=500, paused=True, issued=4)
    assert errors_of(superuser.post(page_of(coupon), form | {"name": "Other"})) == {}
    coupon.refresh_from_db()
    assert (coupon.total_quantity, coupon.paused, coupon.issued, coupon.name) == (500, True, 4, "Other")


def test_what_both_touched_is_refused(superuser: Client, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=10)
    form = form_of(superuser.get(page_of(coupon)))
    Coupon.objects.update(total_quantity=500)
    errors = errors_of(superuser.post(page_of(coupon), form | {"total_quantity": "20"}))
    assert "it is 500 now" in errors["total_quantity"][0]
    coupon.refresh_from_db()
    assert coupon.total_quantity == 500


# What others change at the same moment.


def save_beside_a_batch(client: Client, coupon: Coupon, *winners: int, **changes: str) -> Any:
    """Saves the coupon's page while a batch has issued to ``winners`` and not committed yet."""
    form = form_of(client.get(page_of(coupon))) | changes
    with OpenTransaction(lambda: issue(coupon, *winners)) as batch:
        saving = in_another_session(lambda: client.post(page_of(coupon), form))
        wait_until_blocked(beside=saving)
        batch.commit()
        return saving.result(10)


@pytest.mark.django_db(transaction=True)
def test_a_new_stock_waits_for_the_batch_and_keeps_its_count(superuser: Client, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=10)
    assert errors_of(save_beside_a_batch(superuser, coupon, 1, 2, 3, total_quantity="3", name="Other")) == {}
    coupon.refresh_from_db()
    assert (coupon.total_quantity, coupon.issued, coupon.name) == (3, 3, "Other")


@pytest.mark.django_db(transaction=True)
def test_a_stock_that_a_batch_has_just_used_up_is_refused(superuser: Client, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=10)
    errors = errors_of(save_beside_a_batch(superuser, coupon, 1, 2, 3, total_quantity="2"))
    assert errors == {"total_quantity": ["3 units are issued and 0 reserved: at least 3."]}
    coupon.refresh_from_db()
    assert (coupon.total_quantity, coupon.issued) == (10, 3)


@pytest.mark.django_db(transaction=True)
def test_a_batch_waits_for_the_new_stock(superuser: Client, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=10)
    form = form_of(superuser.get(page_of(coupon))) | {"total_quantity": "1"}
    with OpenTransaction(lambda: errors_of(superuser.post(page_of(coupon), form))) as saving:
        batch = in_another_session(lambda: issue(coupon, 1, 2, 3))
        wait_until_blocked(beside=batch)
        saving.commit()
        batch.result(10)
    coupon.refresh_from_db()
    assert (coupon.total_quantity, coupon.issued) == (1, 1)


@pytest.mark.django_db(transaction=True)
def test_without_lock_and_columns_of_its_own_a_save_would_undo_the_batch(
    superuser: Client, make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = BigTableAdmin
    monkeypatch.setattr(admin.CouponAdmin, "get_object", base.get_object)
    monkeypatch.setattr(admin.CouponAdmin, "save_model", base.save_model)
    coupon = make_coupon(total_quantity=10)
    save_beside_a_batch(superuser, coupon, 1, 2, 3, total_quantity="3")
    coupon.refresh_from_db()
    assert (coupon.total_quantity, coupon.issued) == (3, 0)


@pytest.mark.django_db(transaction=True)
def test_two_clicks_on_save_create_one_coupon_and_no_error(superuser: Client) -> None:
    with OpenTransaction(lambda: superuser.post(ADD, SPRING)) as first:
        second = in_another_session(lambda: superuser.post(ADD, SPRING, follow=True))
        wait_until_blocked(beside=second)
        first.commit()
        response = second.result(10)
    html_of(response)
    assert "A coupon of this type was created at the same moment." in messages_of(response)
    assert Coupon.objects.count() == 1


def test_the_page_shows_who_controlled_the_coupon_and_why(superuser: Client, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    coupon_control(action=Action.RESTOCK, id_or_type=coupon.id, quantity=5, actor="olga", reason="<b>more</b>")
    coupon_control(action=Action.PAUSE, id_or_type=coupon.id, actor="victor")
    page = html_of(superuser.get(page_of(coupon)))
    assert "restock 5 by olga &lt;b&gt;more&lt;/b&gt;" in page
    newest, _, rest = page[page.index("pause by victor") :].partition("<br>")
    assert "restock" not in newest
    assert "restock 5 by olga" in rest
    assert errors_of(change(superuser, coupon, name="Other")) == {}
