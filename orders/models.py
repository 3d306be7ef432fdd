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
    paid_at = models.DateTimeField(null=True, blank=True)
    cancelled_at = models.DateTimeField(null=True, blank=True)

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
        ]
        indexes = [
            # The admin's search by user id.
            models.Index(fields=["user_id"], name="order_user"),
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
