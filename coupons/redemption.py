"""What an order does to the coupon it names: held, used, released, and what a refund makes of it.

Each step is one conditional UPDATE and one entry of the ledger in the caller's transaction, so two orders can never
spend one coupon.
"""

from __future__ import annotations

from functools import partial

from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from . import admission, policy
from .errors import CouponNotUsable
from .models import Coupon, CouponLedgerEntry, UserCoupon

_STEP_OF_A_REFUND = {
    Coupon.RefundPolicy.RETURN_TO_USER: policy.RETURNED_TO_USER,
    Coupon.RefundPolicy.RETURN_TO_POOL: policy.RETURNED_TO_POOL,
    Coupon.RefundPolicy.BURN: policy.BURNED,
}


class LedgerBroken(RuntimeError):
    """A coupon is not in the state that its order left it in."""


def coupon_hold(*, user_coupon_id: int, user_id: int, order_id: int, amount: int) -> int:
    """Hold the user's coupon for an order of ``amount`` won and return what it takes off.

    Must run inside ``transaction.atomic``. Raises CouponNotUsable, also for a discount of 0. Another user's coupon
    reads like none. The expiry is judged here and not again: a coupon that is held in time may be used later.
    """
    in_time = Q(expires_at=None) | Q(expires_at__gt=Now())
    usable = UserCoupon.objects.filter(in_time, id=user_coupon_id, user_id=user_id, status=policy.COUPON_ISSUED)
    if not usable.update(status=policy.COUPON_HELD):
        raise CouponNotUsable(_why_not(user_coupon_id, user_id))
    coupon = Coupon.objects.get(user_coupons=user_coupon_id)
    if amount < coupon.min_order_amount:
        raise CouponNotUsable(f"The coupon is for orders of {coupon.min_order_amount} won or more.")
    if not amount:
        raise CouponNotUsable("The order costs 0 won: the coupon would be used up for nothing.")
    off = policy.discount(coupon.discount_type, coupon.discount_value, coupon.discount_cap, amount)
    if not off:
        raise CouponNotUsable(
            f"{coupon.discount_value} % of {amount} won is less than 1 won: the coupon would be used up for nothing."
        )
    _add(user_coupon_id, order_id, policy.HELD, "order created")
    return off


def coupon_use(*, user_coupon_id: int, order_id: int) -> None:
    """The order that holds the coupon is paid."""
    _change(user_coupon_id, policy.COUPON_HELD, status=policy.COUPON_USED, used_at=Now())
    _add(user_coupon_id, order_id, policy.USED, "order paid")


def coupon_release(*, user_coupon_id: int, order_id: int, cause: str) -> None:
    """The order that holds the coupon will not be paid: its user may use it again."""
    _change(user_coupon_id, policy.COUPON_HELD, status=policy.COUPON_ISSUED)
    _add(user_coupon_id, order_id, policy.RELEASED, cause)


def coupon_refund(*, user_coupon_id: int, order_id: int) -> None:
    """The paid order that used the coupon was cancelled: its refund policy says what becomes of the coupon.

    RETURN_TO_POOL takes the lock on the coupon that every change of its stock takes. The user's row stays, REVOKED, so
    that this user may not claim again.
    """
    coupon = Coupon.objects.get(user_coupons=user_coupon_id)
    step = _STEP_OF_A_REFUND[Coupon.RefundPolicy(coupon.refund_policy)]
    if step == policy.RETURNED_TO_POOL:
        Coupon.objects.select_for_update(no_key=True).get(id=coupon.id)
        Coupon.objects.filter(id=coupon.id).update(issued=F("issued") - 1)
        user_id = UserCoupon.objects.values_list("user_id", flat=True).get(id=user_coupon_id)
        transaction.on_commit(partial(admission.revoke, coupon.id, [user_id]), robust=True)
    if step != policy.BURNED:
        _change(user_coupon_id, policy.COUPON_USED, status=policy.STATUS_AFTER[step], used_at=None)
    _add(user_coupon_id, order_id, step, "paid order cancelled")


def _change(user_coupon_id: int, before: str, **changes: object) -> None:
    if not UserCoupon.objects.filter(id=user_coupon_id, status=before).update(**changes):
        raise LedgerBroken(f"user coupon {user_coupon_id} is not {before}; see check_invariants")


def _add(user_coupon_id: int, order_id: int, step: str, cause: str) -> None:
    if not transaction.get_connection().in_atomic_block:
        raise RuntimeError("a step of the ledger belongs into the transaction of the change")
    CouponLedgerEntry.objects.create(user_coupon_id=user_coupon_id, order_id=order_id, step=step, cause=cause)


def _why_not(user_coupon_id: int, user_id: int) -> str:
    status = UserCoupon.objects.filter(id=user_coupon_id, user_id=user_id).values_list("status", flat=True).first()
    return {
        None: "You have no such coupon.",
        policy.COUPON_ISSUED: "The coupon has expired.",
        policy.COUPON_HELD: "Another order of yours holds the coupon: pay or cancel that one.",
        policy.COUPON_USED: "The coupon was used.",
        policy.COUPON_REVOKED: "The coupon was taken back.",
    }[status]
