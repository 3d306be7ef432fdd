from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from kafka_bridge.admin_base import BigTableAdmin, ReadOnlyAdmin, ReadOnlyInline, code, exact_utc, number_in, utc

from .models import Order, OrderLine, Product

_STATUS_COLOURS = {
    "PENDING": "info", "PAYING": "warning", "PAID": "success", "CANCELLED": "danger", "EXPIRED": "default",
}  # fmt: skip


class ProductForm(forms.ModelForm):  # type: ignore[type-arg]
    def clean_price(self) -> int:
        price: int = self.cleaned_data["price"]
        if price < 0:
            raise forms.ValidationError("A price is not negative.")
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
        # Walks through the catalogue, which people wrote and which is therefore small.
        by_name = Q(name__icontains=text)
        product_id = number_in(text)
        return rows.filter(by_name if product_id is None else by_name | Q(pk=product_id))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody: orders name their products."""
        return False


class OrderLineInline(ReadOnlyInline):
    model = OrderLine
    fields = readonly_fields = ("product", "name", "unit_price", "quantity")

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
        "id", "user_id", code("status"), "user_coupon_id", "total_amount", "discount_amount", "pay_amount",
        exact_utc("created_at"), exact_utc("expires_at"), exact_utc("paid_at"), exact_utc("cancelled_at"),
    )  # fmt: skip

    def find(self, rows: QuerySet[Any], text: str) -> QuerySet[Any] | None:
        number = number_in(text)
        return None if number is None else rows.filter(Q(pk=number) | Q(user_id=number))
