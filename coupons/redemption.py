"""The steps of a coupon through an order: hold, use, release and refund.

Each step is one conditional UPDATE and one ledger entry in the caller's transaction, so two orders can never use one
coupon.
"""

from __future__ import annotations

from functools import partial

from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from . import admission, policy
from .errors import CouponNotUsable
from .models import Coupon, CouponLedgerEntry, UserCoupon

_REFUND_STEPS = {
    Coupon.RefundPolicy.RETURN_TO_USER: policy.RETURNED_TO_USER,
    Coupon.RefundPolicy.RETURN_TO_POOL: policy.RETURNED_TO_POOL,
    Coupon.RefundPolicy.BURN: policy.BURNED,
}


class LedgerBroken(RuntimeError):
    """A coupon is not in the state in which its order left it."""


def coupon_hold(*, user_coupon_id: int, user_id: int, order_id: int, amount: int) -> int:
    """Hold the user's coupon for an order of ``amount`` won; return the discount in won.

    Must run inside ``transaction.atomic``. Raises CouponNotUsable, also for a discount of 0; another user's coupon is
    reported as missing. The expiry is checked only here: a coupon that is held in time may be used later.
    """
    in_time = Q(expires_at=None) | Q(expires_at__gt=Now())
    usable = UserCoupon.objects.filter(in_time, id=user_coupon_id, user_id=user_id, status=policy.COUPON_ISSUED)
    if not usable.update(status=policy.COUPON_HELD):
        raise CouponNotUsable(_refusal(user_coupon_id, user_id))
    coupon = Coupon.objects.get(user_coupons=user_coupon_id)
    if amount < coupon.min_order_amount:
        raise CouponNotUsable(f"The coupon is for orders of {coupon.min_order_amount} won or more.")
    if not amount:
        raise CouponNotUsable("The order costs 0 won: the coupon would give no discount.")
    discount = policy.discount(coupon.discount_type, coupon.discount_value, coupon.discount_cap, amount)
    if not discount:
        raise CouponNotUsable(
            f"{coupon.discount_value} % of {amount} won is less than 1 won: the coupon would give no discount."
        )
    _add_entry(user_coupon_id, order_id, policy.HELD, "order created")
    return discount


def coupon_use(*, user_coupon_id: int, order_id: int) -> None:
    """Mark the coupon as used, when the order that holds it is paid. Raises LedgerBroken."""
    _update_status(user_coupon_id, policy.COUPON_HELD, status=policy.COUPON_USED, used_at=Now())
    _add_entry(user_coupon_id, order_id, policy.USED, "order paid")


def coupon_release(*, user_coupon_id: int, order_id: int, cause: str) -> None:
    """Release the coupon of an order that will not be paid: its user may use it again. Raises LedgerBroken."""
    _update_status(user_coupon_id, policy.COUPON_HELD, status=policy.COUPON_ISSUED)
    _add_entry(user_coupon_id, order_id, policy.RELEASED, cause)


def coupon_refund(*, user_coupon_id: int, order_id: int) -> None:
    """Apply the coupon's refund policy, when the paid order that used it is cancelled. Raises LedgerBroken.

    RETURN_TO_POOL takes the lock on the coupon that every change of its stock takes. The user's row stays as REVOKED,
    so this user cannot get the coupon again.
    """
    coupon = Coupon.objects.get(user_coupons=user_coupon_id)
    step = _REFUND_STEPS[Coupon.RefundPolicy(coupon.refund_policy)]
    if step == policy.RETURNED_TO_POOL:
        Coupon.objects.select_for_update(no_key=True).get(id=coupon.id)
        Coupon.objects.filter(id=coupon.id).update(issued=F("issued") - 1)
        user_id = UserCoupon.objects.values_list("user_id", flat=True).get(id=user_coupon_id)
        transaction.on_commit(partial(admission.revoke, coupon.id, [user_id]), robust=True)
    if step != policy.BURNED:
        _update_status(user_coupon_id, policy.COUPON_USED, status=policy.STATUS_AFTER[step], used_at=None)
    _add_entry(user_coupon_id, order_id, step, "paid order cancelled")


def _update_status(user_coupon_id: int, before: str, **changes: object) -> None:
    if not UserCoupon.objects.filter(id=user_coupon_id, status=before).update(**changes):
        raise LedgerBroken(f"user coupon {user_coupon_id} is not {before}; see check_invariants")


def _add_entry(user_coupon_id: int, order_id: int, step: str, cause: str) -> None:
    if not transaction.get_connection().in_atomic_block:
        raise RuntimeError("write a ledger entry in the transaction of its change")
    CouponLedgerEntry.objects.create(user_coupon_id=user_coupon_id, order_id=order_id, step=step, cause=cause)


def _refusal(user_coupon_id: int, user_id: int) -> str:
    status = UserCoupon.objects.filter(id=user_coupon_id, user_id=user_id).values_list("status", flat=True).first()
    return {
        None: "You have no such coupon.",
        policy.COUPON_ISSUED: "The coupon has expired.",
        policy.COUPON_HELD: "Another order of yours holds the coupon: pay or cancel that one.",
        policy.COUPON_USED: "The coupon was used.",
        policy.COUPON_REVOKED: "The coupon was revoked.",
    }[status]
