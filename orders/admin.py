from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.dateparse import parse_datetime
from django.utils.safestring import SafeString

from common.admin_base import (
    BigTableAdmin,
    ReadOnlyAdmin,
    ReadOnlyInline,
    code,
    exact_utc,
    number_in,
    row_link,
    search_link,
    utc,
)
from coupons.models import UserCoupon
from coupons.policy import name_refusal
from kafka_bridge.models import OutboxMessage
from kafka_bridge.operating.audit import record_action

from .models import Order, OrderLine, OrderMinute, Product, StoredOrder

_STATUS_COLOURS = {
    "PENDING": "info", "PAYING": "warning", "PAID": "success", "CANCELLED": "danger", "EXPIRED": "default",
}  # fmt: skip


class ProductForm(forms.ModelForm):  # type: ignore[type-arg]
    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if "name" in self.changed_data and (why := name_refusal(name)):
            raise forms.ValidationError(f"The name {why}.")
        return name

    def clean_price(self) -> int:
        price: int = self.cleaned_data["price"]
        if price < 0:
            raise forms.ValidationError("The price must not be negative.")
        return price


@admin.register(Product)
class ProductAdmin(BigTableAdmin):
    form = ProductForm
    search_help_text = "part of the name, or product id"
    list_display = ("id", "name", "price")
    fields = ("name", "price")

    def find(self, rows: QuerySet[Any], text: str) -> QuerySet[Any] | None:
        if "\0" in text:
            return None
        # A sequential scan: products are entered by hand, so the table is small.
        by_name = Q(name__icontains=text)
        product_id = number_in(text)
        return rows.filter(by_name if product_id is None else by_name | Q(pk=product_id))

    def save_model(self, request: HttpRequest, obj: Product, form: Any, change: bool) -> None:
        """Save the product as an action of the user, in the transaction of the page."""
        names = form.changed_data if change else list(form.cleaned_data)
        before = Product.objects.filter(pk=obj.pk).values(*names).first() if change else None
        super().save_model(request, obj, form, change)
        if names:
            record_action(
                actor=request.user.get_username(), action="product.edit" if change else "product.create",
                subject=f"product {obj.pk}", before=before, after={name: getattr(obj, name) for name in names},
            )  # fmt: skip

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: order lines reference their products."""
        return False


class OrderLineInline(ReadOnlyInline):
    model = OrderLine
    shown = ("product", "name", "unit_price", "quantity")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        lines: QuerySet[Any] = super().get_queryset(request).select_related("product")
        return lines


@admin.register(Order)
class OrderAdmin(ReadOnlyAdmin):
    search_help_text = "order id or user id"
    inlines = (OrderLineInline,)
    list_display = (
        "id", "user_id", code("status", _STATUS_COLOURS), "total_amount", "discount_amount", "pay_amount",
        utc("created_at"), utc("paid_at"),
    )  # fmt: skip
    shown = (
        "id", "user_id", code("status"), "user_coupon", "total_amount", "discount_amount", "pay_amount",
        exact_utc("created_at"), exact_utc("expires_at"), exact_utc("paying_until"), exact_utc("paid_at"),
        exact_utc("refund_requested_at"), exact_utc("cancelled_at"), "completed_event", "cancelled_event",
    )  # fmt: skip

    @admin.display
    def user_coupon(self, row: Order) -> SafeString | None:
        return None if row.user_coupon_id is None else row_link(UserCoupon, row.user_coupon_id)

    @admin.display
    def completed_event(self, row: Order) -> SafeString | None:
        return _event_link(row.completed_event_id)

    @admin.display
    def cancelled_event(self, row: Order) -> SafeString | None:
        return _event_link(row.cancelled_event_id)

    def find(self, rows: QuerySet[Any], text: str) -> QuerySet[Any] | None:
        number = number_in(text)
        return None if number is None else rows.filter(Q(pk=number) | Q(user_id=number))


@admin.register(StoredOrder)
class StoredOrderAdmin(ReadOnlyAdmin):
    search_help_text = "order id; for a user id, search the orders"
    list_display = (
        "order_id", "user_id", "total_amount", "discount_amount", "pay_amount", utc("paid_at"), utc("cancelled_at"),
        utc("stored_at"),
    )  # fmt: skip
    not_in_the_list = ("items",)
    shown = (
        "order", "user_id", "items", "total_amount", "discount_amount", "pay_amount", "user_coupon_id",
        exact_utc("paid_at"), exact_utc("cancelled_at"), exact_utc("stored_at"),
    )  # fmt: skip

    @admin.display
    def order(self, row: StoredOrder) -> SafeString:
        # A search, not a link to the page: an event from another system may name an order that does not exist here.
        return search_link(Order, str(row.order_id))

    def find(self, rows: QuerySet[Any], text: str) -> QuerySet[Any] | None:
        order_id = number_in(text)
        return None if order_id is None else rows.filter(pk=order_id)


@admin.register(OrderMinute)
class OrderMinuteAdmin(ReadOnlyAdmin):
    search_help_text = "minute (UTC), like 2026-07-01 03:00"
    list_display = (utc("minute"), "completed", "cancelled", "amount")
    shown = (exact_utc("minute"), "completed", "cancelled", "amount")

    def find(self, rows: QuerySet[Any], text: str) -> QuerySet[Any] | None:
        minute = _minute_in(text)
        return None if minute is None else rows.filter(pk=minute)


def _event_link(event_id: UUID | None) -> SafeString | None:
    return None if event_id is None else search_link(OutboxMessage, str(event_id))


def _minute_in(text: str) -> datetime | None:
    """Parse ``text`` and truncate it to the minute; None if it is not a time. A time without a zone counts as UTC."""
    try:
        moment = parse_datetime(text)
        if moment is None:
            return None
        in_utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return in_utc.replace(second=0, microsecond=0)
