from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from common.api.errors import NotFound

from .events import Item


class Product(models.Model):
    id = models.BigAutoField(primary_key=True)
    name = models.CharField(max_length=200)
    price = models.BigIntegerField(help_text="won")

    class Meta:
        constraints = [models.CheckConstraint(name="product_price", condition=Q(price__gte=0))]

    def __str__(self) -> str:
        return self.name


class OrderManager(models.Manager["Order"]):
    def lock(self, order_id: int, *, user_id: int | None = None) -> Order:
        """Lock the order until the caller's transaction ends and return it; every change of an order takes this lock.

        With ``user_id`` only an order of that user is found. Raises NotFound, with the same message for a missing order
        and for another user's.
        """
        owned = {} if user_id is None else {"user_id": user_id}
        order = self.select_for_update(no_key=True).filter(id=order_id, **owned).first()
        if order is None:
            raise NotFound(f"There is no order {order_id}.")
        return order


class Order(models.Model):
    """An order of a user; amounts in won."""

    class Status(models.TextChoices):
        PENDING = "PENDING"
        PAYING = "PAYING"
        PAID = "PAID"
        CANCELLED = "CANCELLED"
        EXPIRED = "EXPIRED"

    id = models.BigAutoField(primary_key=True)
    user_id = models.BigIntegerField()
    status = models.CharField(max_length=16, choices=Status, default=Status.PENDING)
    user_coupon_id = models.BigIntegerField(null=True, blank=True)
    total_amount = models.BigIntegerField()
    discount_amount = models.BigIntegerField(default=0)
    pay_amount = models.BigIntegerField()
    created_at = models.DateTimeField(db_default=Now())
    expires_at = models.DateTimeField()
    # While PAYING: the lease of the process that calls the payment provider. After it the payment is in doubt, and any
    # process may repeat the call.
    paying_until = models.DateTimeField(null=True, blank=True)
    paid_at = models.DateTimeField(null=True, blank=True)
    # A refund was requested and its outcome is not known yet; the sweep repeats the call until it is.
    refund_requested_at = models.DateTimeField(null=True, blank=True)
    cancelled_at = models.DateTimeField(null=True, blank=True)
    # Ids of the published events: every effect must have them in its inbox.
    completed_event_id = models.UUIDField(null=True, blank=True)
    cancelled_event_id = models.UUIDField(null=True, blank=True)

    objects = OrderManager()

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="order_amounts",
                condition=Q(
                    discount_amount__gte=0,
                    pay_amount__gte=0,
                    total_amount=models.F("discount_amount") + models.F("pay_amount"),
                ),
            ),
            # Second guard behind the hold on the coupon itself: a coupon is in at most one live order.
            models.UniqueConstraint(
                fields=["user_coupon_id"],
                condition=Q(status__in=["PENDING", "PAYING", "PAID"]),
                name="one_order_per_coupon",
            ),
        ]
        indexes = [
            # The admin's search by user id.
            models.Index(fields=["user_id"], name="order_user"),
            # The sweeps of expire_orders.
            models.Index(fields=["expires_at"], name="order_unpaid", condition=Q(status="PENDING")),
            models.Index(fields=["paying_until"], name="order_in_doubt", condition=Q(status="PAYING")),
            models.Index(
                fields=["refund_requested_at"],
                name="order_refund_in_doubt",
                condition=Q(refund_requested_at__isnull=False),
            ),
            # The days of the ranking.
            models.Index(fields=["paid_at"], name="order_paid", condition=Q(paid_at__isnull=False)),
        ]

    def __str__(self) -> str:
        return f"order {self.id}"

    def items(self) -> tuple[Item, ...]:
        """Read the lines, in the sequence in which they were placed."""
        lines = self.lines.order_by("id").values_list("product_id", "name", "quantity", "unit_price")
        return tuple(Item(*line) for line in lines)


class OrderLine(models.Model):
    """A line of an order, with name and price at the time the order was placed."""

    id = models.BigAutoField(primary_key=True)
    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="lines")
    product = models.ForeignKey(Product, on_delete=models.PROTECT)
    name = models.CharField(max_length=200)
    unit_price = models.BigIntegerField(help_text="won")
    quantity = models.PositiveIntegerField()

    class Meta:
        constraints = [models.CheckConstraint(name="order_line_quantity", condition=Q(quantity__gte=1))]

    def __str__(self) -> str:
        return f"{self.quantity} x {self.name}"


class IdempotencyKey(models.Model):
    """An idempotency key of a user's call, and the response once there is one.

    Written in the transaction of the call's effect; a refused call leaves no row, so its key can be used again.
    """

    id = models.BigAutoField(primary_key=True)
    user_id = models.BigIntegerField()
    operation = models.CharField(max_length=16)
    key = models.CharField(max_length=255)
    fingerprint = models.BinaryField(help_text="SHA-256 of what was asked for")
    response = models.BinaryField(null=True, help_text="the body of the first accepted answer; null: under way")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user_id", "operation", "key"], name="one_call_per_idempotency_key"),
        ]
        indexes = [
            # The housekeeper.
            models.Index(fields=["created_at"], name="idempotency_key_age"),
            # store_response and discard_keys, at every payment; almost empty, however many keys a user has.
            models.Index(
                fields=["user_id", "operation", "fingerprint"],
                name="idempotency_key_unanswered",
                condition=Q(response=None),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.operation} of user {self.user_id}"


class StoredOrder(models.Model):
    """The data platform's copy of a paid order, built only from its events, which may arrive in either order."""

    order_id = models.BigIntegerField(primary_key=True)
    user_id = models.BigIntegerField()
    items = models.JSONField(help_text="[{productId, name, quantity, unitPrice}]")
    # Null while only the event of the cancellation has arrived.
    total_amount = models.BigIntegerField(null=True)
    discount_amount = models.BigIntegerField(null=True)
    pay_amount = models.BigIntegerField(null=True)
    user_coupon_id = models.BigIntegerField(null=True)
    paid_at = models.DateTimeField()
    cancelled_at = models.DateTimeField(null=True)
    stored_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"order {self.order_id}"


class OrderMinute(models.Model):
    """Orders paid and cancelled per minute (UTC, by event time); input of the alert rules in monitoring."""

    minute = models.DateTimeField(primary_key=True)
    completed = models.BigIntegerField(default=0)
    cancelled = models.BigIntegerField(default=0)
    amount = models.BigIntegerField(default=0, help_text="won paid")

    def __str__(self) -> str:
        return f"{self.minute}: {self.completed} paid, {self.cancelled} cancelled"
