from django.db import models
from django.db.models import Q
from django.db.models.functions import Now


class Product(models.Model):
    id = models.BigAutoField(primary_key=True)
    name = models.CharField(max_length=200)
    price = models.BigIntegerField(help_text="won")

    class Meta:
        constraints = [models.CheckConstraint(name="product_price", condition=Q(price__gte=0))]

    def __str__(self) -> str:
        return self.name


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
    # While PAYING: until then the call to the payment provider is somebody's; afterwards the payment is in doubt and
    # whoever comes may ask again.
    paying_until = models.DateTimeField(null=True, blank=True)
    paid_at = models.DateTimeField(null=True, blank=True)
    # The money is to be given back, and may have been; the sweep asks until it is certain.
    refund_requested_at = models.DateTimeField(null=True, blank=True)
    cancelled_at = models.DateTimeField(null=True, blank=True)
    # The events that told of it: what every effect must have in its inbox.
    completed_event_id = models.UUIDField(null=True, blank=True)
    cancelled_event_id = models.UUIDField(null=True, blank=True)

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
            # Behind the hold of the coupon itself: no coupon is in two orders that live.
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


class OrderLine(models.Model):
    """A line of an order with name and price as they were when it was placed."""

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
    """A key that a user gave with a call, and the answer to it once there is one.

    It is written in the transaction of the call's effect; a refused call leaves no row, so that its key may try again.
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
            # Forgetting what is old.
            models.Index(fields=["created_at"], name="idempotency_key_age"),
            # Answering what is under way, at every payment; almost empty, however many keys a user has.
            models.Index(
                fields=["user_id", "operation", "fingerprint"],
                name="idempotency_key_unanswered",
                condition=Q(response=None),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.operation} of user {self.user_id}"


class StoredOrder(models.Model):
    """The data platform's copy of a paid order: from its events alone, which may come in either order."""

    order_id = models.BigIntegerField(primary_key=True)
    user_id = models.BigIntegerField()
    items = models.JSONField(help_text="[{productId, name, quantity, unitPrice}]")
    # Null until the event of the payment came, if that of the cancellation was faster.
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
    """How many orders were paid and cancelled in a minute (UTC) of their time: what the monitoring's rules look at."""

    minute = models.DateTimeField(primary_key=True)
    completed = models.BigIntegerField(default=0)
    cancelled = models.BigIntegerField(default=0)
    amount = models.BigIntegerField(default=0, help_text="won paid")

    def __str__(self) -> str:
        return f"{self.minute}: {self.completed} paid, {self.cancelled} cancelled"
