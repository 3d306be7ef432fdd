from __future__ import annotations

from operator import attrgetter
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db import IntegrityError, transaction
from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponseRedirect
from django.urls import reverse
from django.utils.safestring import SafeString

from common.admin_base import (
    BigTableAdmin,
    ReadOnlyAdmin,
    ReadOnlyInline,
    code,
    column,
    exact_utc,
    number_in,
    row_link,
    search_link,
    utc,
    uuid_in,
)
from common.postgres.clock import database_time
from kafka_bridge.models import OutboxMessage

from . import policy, selectors
from .controls import record_change, recorded_values
from .models import Coupon, CouponLedgerEntry, IssueRequest, Notification, RolloutChange, UserCoupon
from .rollout import rollout_set

_STATE_COLOURS = {
    "SCHEDULED": "info", "OPEN": "success", "PAUSED": "warning", "SOLD_OUT": "danger", "CLOSED": "default",
}  # fmt: skip
_STATUS_COLOURS = {
    "ISSUED": "success", "HELD": "warning", "USED": "info", "EXPIRED": "default", "REVOKED": "danger",
    "SUCCESS": "success", "FAILED": "danger",
}  # fmt: skip

_CONTROLS_SHOWN = 20


class CouponForm(forms.ModelForm):  # type: ignore[type-arg]
    """Validates at the field what the table's constraints would refuse.

    Other operators may restock or pause the coupon while the form is open. A field that this operator did not change
    keeps its current value; a field that both changed is refused. So the form carries the values that it showed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        editing = self.instance.pk is not None
        self._has_shown_values = editing and (not self.is_bound or self.add_initial_prefix("name") in self.data)
        for field in self.fields.values():
            field.show_hidden_initial = self._has_shown_values

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if self._has_shown_values:
            self._merge_concurrent_changes(cleaned)
        self._check_type(cleaned)
        self._check_discount(cleaned)
        self._check_stock(cleaned)
        self._check_times(cleaned)
        return cleaned

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if "name" in self.changed_data and (why := policy.name_refusal(name)):
            raise forms.ValidationError(f"The name {why}.")
        return name

    def _merge_concurrent_changes(self, cleaned: dict[str, Any]) -> None:
        for name in list(cleaned):
            bound = self[name]
            if name not in self.changed_data:
                cleaned[name] = getattr(self.instance, name)
                continue
            shown = bound.field.hidden_widget().value_from_datadict(self.data, self.files, bound.html_initial_name)
            if bound.field.has_changed(bound.initial, shown):
                self.add_error(
                    name, f"Changed by another operator in the meantime: it is {bound.initial} now. Reload the page."
                )

    def _check_type(self, cleaned: dict[str, Any]) -> None:
        coupon_type = cleaned.get("coupon_type")
        if coupon_type is not None and not policy.is_coupon_type(coupon_type):
            self.add_error("coupon_type", "Use 1 to 64 of A-Z a-z 0-9 _ -")
        elif coupon_type is not None and coupon_type.startswith(policy.REHEARSAL_PREFIX):
            self.add_error("coupon_type", f"Types that begin with {policy.REHEARSAL_PREFIX} are for rehearsals.")

    def _check_discount(self, cleaned: dict[str, Any]) -> None:
        kind, value, cap = cleaned.get("discount_type"), cleaned.get("discount_value"), cleaned.get("discount_cap")
        if kind == Coupon.DiscountType.PERCENT and value is not None and not 1 <= value <= 100:
            self.add_error("discount_value", "A percentage is from 1 to 100.")
        if kind == Coupon.DiscountType.FIXED and value is not None and value < 1:
            self.add_error("discount_value", "A fixed discount is at least 1 won.")
        if kind == Coupon.DiscountType.FIXED and cap is not None:
            self.add_error("discount_cap", "Only a percentage has a cap.")
        elif cap is not None and cap < 1:
            self.add_error("discount_cap", "A cap is at least 1 won.")
        minimum = cleaned.get("min_order_amount")
        if minimum is not None and minimum < 0:
            self.add_error("min_order_amount", "An amount is not negative.")

    def _check_stock(self, cleaned: dict[str, Any]) -> None:
        total = cleaned.get("total_quantity")
        taken = self.instance.issued + self.instance.reserved
        if total is not None and total < 0:
            self.add_error("total_quantity", "The stock is not negative.")
        elif total is not None and total < taken:
            self.add_error(
                "total_quantity",
                f"{self.instance.issued} units are issued and {self.instance.reserved} reserved: at least {taken}.",
            )

    def _check_times(self, cleaned: dict[str, Any]) -> None:
        opens_at, closes_at = cleaned.get("opens_at"), cleaned.get("closes_at")
        for name, moment in (("opens_at", opens_at), ("closes_at", closes_at)):
            if moment and (why := policy.time_refusal(moment)):
                self.add_error(name, f"The time {why}.")
        if opens_at and closes_at and closes_at < opens_at:
            self.add_error("closes_at", "A coupon does not close before it opens.")
        valid_days = cleaned.get("valid_days")
        if valid_days is not None and not 1 <= valid_days <= policy.MOST_VALID_DAYS:
            self.add_error("valid_days", f"From 1 to {policy.MOST_VALID_DAYS} days, or empty.")


@admin.register(Coupon)
class CouponAdmin(BigTableAdmin):
    form = CouponForm
    search_help_text = "how a coupon type begins, or coupon id"
    list_display = (
        "coupon_type", "name",
        column("state", lambda coupon: selectors.coupon_view(coupon).state, _STATE_COLOURS),
        "total_quantity", "reserved", "issued", "remaining", utc("opens_at"), utc("closes_at"), code("admission"),
    )  # fmt: skip
    fieldsets = (
        (None, {"fields": ("coupon_type", "name", "admission")}),
        ("Stock", {"fields": ("total_quantity", ("issued", "reserved", "remaining"))}),
        ("Window (UTC)", {"fields": ("state", "opens_at", "closes_at", "paused")}),
        ("Discount", {"fields": ("discount_type", "discount_value", "discount_cap", "min_order_amount")}),
        ("Once issued", {"fields": ("valid_days", "refund_policy")}),
        ("Controls", {"fields": ("controls",)}),
    )
    add_fieldsets = (
        (None, {"fields": ("coupon_type", "name", "admission", "total_quantity")}),
        ("Window (UTC)", {"fields": ("opens_at", "closes_at", "paused")}),
        *fieldsets[3:5],
    )
    readonly_fields = ("issued", "reserved", "remaining", "state", "controls")
    warn_unsaved_form = True

    @admin.display
    def state(self, coupon: Coupon) -> str:
        return selectors.coupon_view(coupon).state

    @admin.display(description="latest controls")
    def controls(self, coupon: Coupon) -> str:
        # Plain text: the page escapes it and keeps its line breaks.
        return "\n".join(
            f"{control.created_at:%Y-%m-%d %H:%M:%S} {control} by {control.actor} {control.reason}"
            for control in coupon.controls.order_by("-created_at")[:_CONTROLS_SHOWN]
        )

    def find(self, rows: QuerySet[Any], text: str) -> QuerySet[Any] | None:
        if not policy.is_coupon_type(text):
            return None
        by_type = Q(coupon_type__startswith=text)
        coupon_id = number_in(text)
        return rows.filter(by_type if coupon_id is None else by_type | Q(pk=coupon_id))

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return selectors.coupons()

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Coupon | None:
        """On a save, lock the coupon as the issuer does, from before the validation until the commit."""
        coupon: Coupon | None = super().get_object(request, object_id, from_field)
        if coupon is None or request.method != "POST" or not transaction.get_connection().in_atomic_block:
            return coupon
        locked: Coupon = self.get_queryset(request).select_for_update(no_key=True).get(pk=coupon.pk)
        return locked

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)
        except IntegrityError:
            if object_id is not None:
                raise
            # A concurrent request, or a second click, created the coupon after the form was validated.
            messages.error(request, "A coupon of this type was created at the same moment.")
            return HttpResponseRedirect(reverse("admin:coupons_coupon_changelist"))

    def save_model(self, request: HttpRequest, obj: Coupon, form: forms.ModelForm[Coupon], change: bool) -> None:
        actor = request.user.get_username()
        if not change:
            super().save_model(request, obj, form, change)
            given = recorded_values(obj, form.cleaned_data)
            record_change("coupon.create", obj, actor=actor, before=None, after=given)
        elif form.changed_data:
            before = recorded_values(Coupon.objects.get(pk=obj.pk), form.changed_data)
            obj.save(update_fields=form.changed_data)
            after = recorded_values(obj, form.changed_data)
            record_change("coupon.edit", obj, actor=actor, before=before, after=after)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"opens_at": database_time(), **super().get_changeform_initial_data(request)}

    def get_readonly_fields(self, request: HttpRequest, obj: Coupon | None = None) -> Any:
        # Topics, links and requests refer to the type, so it never changes.
        return self.readonly_fields if obj is None else ("coupon_type", *self.readonly_fields)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never: users' coupons and requests refer to the coupon, without a foreign key in the database."""
        return False


class LedgerInline(ReadOnlyInline):
    """The ledger of the coupon, oldest step first."""

    model = CouponLedgerEntry
    verbose_name_plural = "ledger"
    ordering = ("id",)
    shown = (code("step"), "order_id", "cause", exact_utc("created_at"))


@admin.register(UserCoupon)
class UserCouponAdmin(ReadOnlyAdmin):
    search_help_text = "user id"
    inlines = (LedgerInline,)
    list_select_related = ("coupon",)
    list_display = (
        "id", "user_id", "coupon",
        column("status", lambda row: selectors.user_coupon_view(row).status, _STATUS_COLOURS),
        utc("issued_at"), utc("expires_at"), utc("used_at"),
    )  # fmt: skip
    shown = (
        "id", "user_id", "coupon", column("status", lambda row: selectors.user_coupon_view(row).status),
        exact_utc("issued_at"), exact_utc("expires_at"), exact_utc("used_at"),
    )  # fmt: skip

    def find(self, rows: QuerySet[Any], text: str) -> QuerySet[Any] | None:
        user_id = number_in(text)
        # In the order of the index, so that no plan can prefer a scan of all users' coupons.
        return None if user_id is None else rows.filter(user_id=user_id).order_by("-coupon_id")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: QuerySet[Any] = super().get_queryset(request).annotate(server_time=Now())
        return rows.filter(user_id__lt=policy.FIRST_REHEARSAL_USER)


@admin.register(IssueRequest)
class IssueRequestAdmin(ReadOnlyAdmin):
    # No search by user: its index would make each insert and its WAL half as expensive again. A user's coupons
    # are found among the user coupons.
    search_help_text = "request id (UUID); for a user id, search the user coupons"
    list_display = (
        "request_id", "coupon_type", "user_id", code("status", _STATUS_COLOURS), code("reason"), "source",
        utc("requested_at"), utc("processed_at"),
    )  # fmt: skip
    shown = (
        "request_id", "coupon_type", "coupon", "user", code("status"), code("reason"), "user_coupon", "source",
        exact_utc("requested_at"), exact_utc("published_at"), exact_utc("processed_at"), "remaining",
        "topic", "partition", "offset", "replay_of_request", "message",
    )  # fmt: skip

    @admin.display(description="replay of")
    def replay_of_request(self, row: IssueRequest) -> SafeString | None:
        return None if row.replay_of is None else row_link(IssueRequest, row.replay_of)

    @admin.display(description="user id")
    def user(self, row: IssueRequest) -> SafeString | None:
        return None if row.user_id is None else search_link(UserCoupon, str(row.user_id))

    @admin.display
    def user_coupon(self, row: IssueRequest) -> SafeString | None:
        return None if row.user_coupon_id is None else row_link(UserCoupon, row.user_coupon_id)

    @admin.display(description="outbox")
    def message(self, row: IssueRequest) -> SafeString:
        return search_link(OutboxMessage, str(row.request_id))

    def find(self, rows: QuerySet[Any], text: str) -> QuerySet[Any] | None:
        request_id = uuid_in(text)
        return None if request_id is None else rows.filter(pk=request_id)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: QuerySet[Any] = super().get_queryset(request)
        return rows.filter(Q(user_id=None) | Q(user_id__lt=policy.FIRST_REHEARSAL_USER))


@admin.register(Notification)
class NotificationAdmin(ReadOnlyAdmin):
    search_help_text = "user id, or event id (UUID)"
    list_display = ("id", "user_id", "template_code", "event_id", utc("created_at"))
    not_in_the_list = ("variables",)
    shown = ("id", "user_id", "template_code", "variables", "message", exact_utc("created_at"))

    @admin.display(description="outbox")
    def message(self, row: Notification) -> SafeString:
        return search_link(OutboxMessage, str(row.event_id))

    def find(self, rows: QuerySet[Any], text: str) -> QuerySet[Any] | None:
        if (user_id := number_in(text)) is not None:
            return rows.filter(user_id=user_id)
        event_id = uuid_in(text)
        return None if event_id is None else rows.filter(event_id=event_id)


@admin.register(RolloutChange)
class RolloutChangeAdmin(BigTableAdmin):
    """The history of the rollout's flags, to which an operator adds rows."""

    search_help_text = "flag"
    list_display = (
        utc("created_at"), "flag", column("from", attrgetter("previous")), column("to", attrgetter("percent")),
        "actor", "reason",
    )  # fmt: skip
    fields = ("flag", "percent", "reason")

    def find(self, rows: QuerySet[Any], text: str) -> QuerySet[Any]:
        return rows.filter(flag=text)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        earlier = RolloutChange.objects.filter(flag=OuterRef("flag"), pk__lt=OuterRef("pk")).order_by("-pk")
        return RolloutChange.objects.annotate(previous=Subquery(earlier.values("percent")[:1]))

    def save_model(self, request: HttpRequest, obj: RolloutChange, form: Any, change: bool) -> None:
        obj.actor = request.user.get_username()
        rollout_set(obj)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
