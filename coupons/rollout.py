"""The rollout: which users' gate requests use the Redis queue instead of Kafka, by flags that operators set.

The flag ``issue-worker-<COUPON_TYPE>`` applies to one coupon, else ``issue-worker`` to all, else 0 %. The latest
``RolloutChange`` of a flag is its percentage; one without a percentage removes the flag.

A user gets the same transport in every process, and a request costs no extra query: the coupon cache reads the flag
together with the coupon, so that a flag is at most a second old.
"""

from __future__ import annotations

from hashlib import blake2b

from django.db import transaction
from django.db.models import Case, Expression, F, IntegerField, OuterRef, Subquery, Value, When
from django.db.models.functions import Cast, Coalesce, Concat

from kafka_bridge.operating.audit import record_action

from .admission.reservations import GATE
from .models import RolloutChange

_ALL_USERS = 1000


def rollout_permille() -> Expression:
    """Return an expression for a query of coupons: users per thousand on the Redis queue, 0 without a gate."""
    coupon_flag = _flag_permille(Concat(Value(RolloutChange.ONE_COUPON), OuterRef("coupon_type")))
    global_flag = _flag_permille(Value(RolloutChange.ALL_COUPONS))
    return Case(When(admission=GATE, then=Coalesce(coupon_flag, global_flag, Value(0))), default=Value(0))


def rollout_set(change: RolloutChange) -> None:
    """Save a new ``change``, which was validated, as an action of its actor."""
    with transaction.atomic():
        previous = RolloutChange.objects.filter(flag=change.flag).order_by("-id").first()
        change.save()
        record_action(
            actor=change.actor, action="rollout.set", subject=f"flag {change.flag}", reason=change.reason,
            before=None if previous is None else _recorded(previous), after=_recorded(change),
        )  # fmt: skip


def _recorded(change: RolloutChange) -> dict[str, str | None]:
    return {"percent": None if change.percent is None else str(change.percent)}


def uses_redis_queue(user_id: int, permille: int) -> bool:
    """Whether the user is among ``permille`` of a thousand users. A larger value keeps the users of a smaller one."""
    if permille <= 0:
        return False
    digest = blake2b(str(user_id).encode(), digest_size=8).digest()
    return int.from_bytes(digest) % _ALL_USERS < permille


def _flag_permille(flag: Expression) -> Subquery:
    permille = Cast(F("percent") * Value(_ALL_USERS // 100), IntegerField())
    return Subquery(RolloutChange.objects.filter(flag=flag).order_by("-id").values(permille=permille)[:1])
