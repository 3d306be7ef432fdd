from django.contrib.postgres.indexes import BrinIndex
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now

from . import policy
from .admission import ADMISSIONS
from .policy import Window


def admission_choices() -> list[tuple[str, str]]:
    """The admissions that a coupon can have. A callable, so that a new admission needs no migration."""
    return [(name, name.capitalize()) for name in ADMISSIONS]


class Coupon(models.Model):
    """A limited number of equal coupons, issued first come, first served."""

    class DiscountType(models.TextChoices):
        PERCENT = "PERCENT"
        FIXED = "FIXED"

    class RefundPolicy(models.TextChoices):
        RETURN_TO_USER = "RETURN_TO_USER"
        RETURN_TO_POOL = "RETURN_TO_POOL"
        BURN = "BURN"

    id = models.BigAutoField(primary_key=True)
    coupon_type = models.CharField(max_length=64, unique=True)
    name = models.CharField(max_length=200)
    admission = models.CharField(max_length=16, choices=admission_choices, default="queue")
    discount_type = models.CharField(max_length=16, choices=DiscountType)
    discount_value = models.BigIntegerField(help_text="percent, or won")
    discount_cap = models.BigIntegerField(null=True, blank=True, help_text="won; the most a percentage takes off")
    min_order_amount = models.BigIntegerField(default=0, help_text="won")
    total_quantity = models.BigIntegerField()
    reserved = models.BigIntegerField(default=0, editable=False)
    issued = models.BigIntegerField(default=0, editable=False)
    last_sequence = models.BigIntegerField(
        default=0, db_default=0, editable=False, help_text="the last place in line given out"
    )
    opens_at = models.DateTimeField(db_default=Now())
    closes_at = models.DateTimeField(null=True, blank=True)
    paused = models.BooleanField(default=False)
    valid_days = models.PositiveIntegerField(null=True, blank=True, help_text="empty: never expires")
    refund_policy = models.CharField(max_length=16, choices=RefundPolicy, default=RefundPolicy.RETURN_TO_USER)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        permissions = [("issue_for_others", "Can request coupons for other users")]
        constraints = [
            models.CheckConstraint(
                name="coupon_stock",
                condition=Q(issued__gte=0, reserved__gte=0, total_quantity__gte=F("issued") + F("reserved")),
            ),
            models.CheckConstraint(
                name="coupon_discount",
                condition=Q(discount_type="FIXED", discount_value__gte=1)
                | Q(discount_type="PERCENT", discount_value__gte=1, discount_value__lte=100),
            ),
            models.CheckConstraint(
                name="coupon_type_letters", condition=Q(coupon_type__regex=r"^[A-Za-z0-9_-]{1,64}$")
            ),
            # A later expiry would overflow in the issuer and make every request of the coupon fail.
            models.CheckConstraint(
                name="coupon_valid_days", condition=Q(valid_days=None) | Q(valid_days__range=(1, 36500))
            ),
            models.CheckConstraint(name="coupon_window", condition=Q(closes_at=None) | Q(closes_at__gte=F("opens_at"))),
            # For every writer: a time without a date in Python or in another zone would break every list with the row.
            models.CheckConstraint(
                name="coupon_times",
                condition=Q(opens_at__gte=policy.EARLIEST, opens_at__lt=policy.TOO_LATE)
                & (Q(closes_at=None) | Q(closes_at__gte=policy.EARLIEST, closes_at__lt=policy.TOO_LATE)),
            ),
        ]

    def __str__(self) -> str:
        return self.coupon_type

    @property
    def window(self) -> Window:
        return Window(self.opens_at, self.closes_at, self.paused)

    @property
    def remaining(self) -> int:
        return self.total_quantity - self.issued - self.reserved


class UserCoupon(models.Model):
    """A coupon that a user has. ``user_id`` comes from the token; users are managed by the identity provider."""

    class Status(models.TextChoices):
        ISSUED = policy.COUPON_ISSUED
        HELD = policy.COUPON_HELD
        USED = policy.COUPON_USED
        REVOKED = policy.COUPON_REVOKED

    id = models.BigAutoField(primary_key=True)
    # No foreign key in the database: an insert happens under the lock on the coupon, and coupons are never deleted.
    coupon = models.ForeignKey(
        Coupon, on_delete=models.PROTECT, db_constraint=False, db_index=False, related_name="user_coupons"
    )
    user_id = models.BigIntegerField()
    status = models.CharField(max_length=16, choices=Status, default=Status.ISSUED)
    issued_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True)
    used_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            # Also the index of a user's list of coupons, hence the user first.
            models.UniqueConstraint(fields=["user_id", "coupon"], name="one_coupon_per_user"),
        ]
        indexes = [
            # For loading a coupon's gate. Rows of one coupon are written close together, so a BRIN index skips most of
            # the table and costs an insert nothing.
            BrinIndex(fields=["coupon"], name="user_coupon_by_coupon", pages_per_range=32, autosummarize=True),
        ]

    def __str__(self) -> str:
        return f"coupon {self.coupon_id} of user {self.user_id}"


class IssueRequest(models.Model):
    """The terminal row of a request: its result, the issuer's inbox and the audit trail in one.

    It is inserted once, together with the user's coupon, and never changed. A request without it is undecided: it
    exists only as its outbox row.
    """

    class Status(models.TextChoices):
        SUCCESS = policy.SUCCESS
        FAILED = policy.FAILED

    class Reason(models.TextChoices):
        SOLD_OUT = policy.SOLD_OUT
        ALREADY_ISSUED = policy.ALREADY_ISSUED
        NOT_OPEN = policy.NOT_OPEN
        UNKNOWN_COUPON = policy.UNKNOWN_COUPON
        ERROR = policy.ERROR

    request_id = models.UUIDField(primary_key=True)
    # Null for a request that named an unknown coupon, or that could not be read.
    coupon = models.ForeignKey(
        Coupon, on_delete=models.PROTECT, null=True, db_constraint=False, db_index=False, related_name="requests"
    )
    coupon_type = models.CharField(max_length=64, default="")
    user_id = models.BigIntegerField(null=True)
    status = models.CharField(max_length=16, choices=Status)
    reason = models.CharField(max_length=16, choices=Reason, null=True)  # noqa: DJ001 - null is "no reason"
    user_coupon_id = models.BigIntegerField(null=True)
    source = models.CharField(max_length=16, default="")
    requested_at = models.DateTimeField(null=True)
    processed_at = models.DateTimeField()
    topic = models.CharField(max_length=249)
    partition = models.IntegerField()
    offset = models.BigIntegerField()
    remaining = models.BigIntegerField(null=True, help_text="stock left after the decision")
    published_at = models.DateTimeField(null=True, help_text="the timestamp of its message in Kafka")
    replay_of = models.UUIDField(null=True, help_text="the failed request whose dead letter was replayed")

    class Meta:
        constraints = [
            # A failed request is replayed once, whatever dead letters it has.
            models.UniqueConstraint(fields=["replay_of"], condition=~Q(replay_of=None), name="one_replay_per_request"),
        ]

    def __str__(self) -> str:
        return f"{self.request_id} {self.status}"


class Reservation(models.Model):
    """A unit reserved for an accepted, undecided request: see ``admission.reservations``.

    It is inserted with the outbox row and deleted with the terminal row.
    """

    request_id = models.UUIDField(primary_key=True)
    coupon = models.ForeignKey(
        Coupon, on_delete=models.PROTECT, db_constraint=False, db_index=False, related_name="reservations"
    )
    user_id = models.BigIntegerField()
    admission = models.CharField(max_length=16, help_text="gate; or reserve, counted in the coupon's reserved")
    by_worker = models.BooleanField(default=False, db_default=False, help_text="carried by issue_worker, not by Kafka")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        indexes = [
            # For the issue worker's search for requests lost by its Redis queue, however many others are undecided.
            models.Index(fields=["created_at"], name="reservation_by_worker", condition=Q(by_worker=True)),
        ]
        constraints = [
            # Also the index of a coupon's undecided requests, hence the coupon first.
            models.UniqueConstraint(fields=["coupon", "user_id"], name="one_reservation_per_user"),
        ]

    def __str__(self) -> str:
        return f"{self.admission} of coupon {self.coupon_id} for user {self.user_id}"


class CouponLedgerEntry(models.Model):
    """A step of a coupon through an order. Append-only: the database refuses updates and deletes.

    The latest step determines the status of the coupon, see ``policy.STATUS_AFTER``.
    """

    class Step(models.TextChoices):
        HELD = policy.HELD
        USED = policy.USED
        RELEASED = policy.RELEASED
        RETURNED_TO_USER = policy.RETURNED_TO_USER
        RETURNED_TO_POOL = policy.RETURNED_TO_POOL
        BURNED = policy.BURNED

    id = models.BigAutoField(primary_key=True)
    user_coupon = models.ForeignKey(UserCoupon, on_delete=models.PROTECT, related_name="ledger")
    order_id = models.BigIntegerField()
    step = models.CharField(max_length=20, choices=Step)
    cause = models.CharField(max_length=100, help_text="what happened to the order")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["order_id", "step"], name="ledger_step_once_per_order"),
        ]

    def __str__(self) -> str:
        return f"coupon {self.user_coupon_id}: {self.step} by order {self.order_id}"


class CouponControl(models.Model):
    """An operator's control of a coupon, also one that changed nothing.

    Append-only: the database refuses updates and deletes. The primary key is the control's id: a repeated id is the
    same control, so a restock counts once.
    """

    class Action(models.TextChoices):
        OPEN = "open"
        PAUSE = "pause"
        RESUME = "resume"
        CLOSE = "close"
        RESTOCK = "restock"

    id = models.UUIDField(primary_key=True)
    coupon = models.ForeignKey(Coupon, on_delete=models.PROTECT, related_name="controls")
    action = models.CharField(max_length=16, choices=Action)
    quantity = models.BigIntegerField(null=True, help_text="of a restock: the units added")
    reason = models.CharField(max_length=500, default="")
    actor = models.CharField(max_length=150, help_text="who did it")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="control_quantity",
                condition=Q(action="restock", quantity__gte=1) | (~Q(action="restock") & Q(quantity=None)),
            ),
        ]

    def __str__(self) -> str:
        return self.action if self.quantity is None else f"{self.action} {self.quantity}"


class RolloutChange(models.Model):
    """A flag of the rollout, as an operator set it: the latest row of a flag is its value, see ``coupons.rollout``.

    Append-only: the database refuses updates and deletes.
    """

    ALL_COUPONS = "issue-worker"
    ONE_COUPON = "issue-worker-"

    id = models.BigAutoField(primary_key=True)
    flag = models.CharField(
        max_length=100, help_text=f"{ALL_COUPONS}, or {ONE_COUPON}<coupon type>, which wins for its coupon"
    )
    percent = models.DecimalField(
        max_digits=4,
        decimal_places=1,
        null=True,
        blank=True,
        validators=[MinValueValidator(0), MaxValueValidator(100)],
        help_text="of the users whose requests for gate coupons go to issue_worker instead of Kafka; empty: no flag",
    )
    reason = models.CharField(max_length=500, blank=True, default="")
    actor = models.CharField(max_length=150, editable=False, help_text="who did it")
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        constraints = [
            models.CheckConstraint(name="rollout_percent", condition=Q(percent=None) | Q(percent__range=(0, 100))),
        ]
        indexes = [
            # For the latest row of a flag, which the coupon cache reads with each coupon.
            models.Index(fields=["flag", "id"], name="rollout_by_flag"),
        ]

    def __str__(self) -> str:
        return f"{self.flag}: {'no flag' if self.percent is None else f'{self.percent} %'}"

    def clean(self) -> None:
        """Refuse a flag that would have no effect. Raises ValidationError."""
        general, _, coupon_type = self.flag.partition(self.ONE_COUPON)
        if self.flag != self.ALL_COUPONS and (general or not Coupon.objects.filter(coupon_type=coupon_type).exists()):
            by_type = f"{self.ONE_COUPON}<coupon type> for a coupon that exists"
            raise ValidationError({"flag": f"Use {self.ALL_COUPONS} for every coupon, or {by_type}."})


class Notification(models.Model):
    """A message to a user, stored instead of sent because ALIMTALK_URL is not set."""

    id = models.BigAutoField(primary_key=True)
    event_id = models.UUIDField(unique=True)
    user_id = models.BigIntegerField()
    template_code = models.CharField(max_length=64)
    variables = models.JSONField()
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        indexes = [
            # For the admin's search by user id.
            models.Index(fields=["user_id"], name="notification_user"),
        ]

    def __str__(self) -> str:
        return f"{self.template_code} to user {self.user_id}"
