"""The rollout: which users' gate requests use the Redis queue instead of Kafka, by flags of django-waffle.

The flag ``issue-worker-<COUPON_TYPE>`` applies to one coupon, else ``issue-worker`` to all. Everyone "yes" is 100 %,
"no" is 0 %; otherwise the flag's percentage counts, and a flag without a percentage is 0 %.

Only waffle's table, admin page and command are used. Waffle's own flag check picks randomly per browser, remembers that
in cookies and keeps flags in a cache that may be unavailable. Here a user gets the same transport in every process and
without a cookie, a flag is at most a second old, and a request costs no extra query: the coupon cache reads the flag
together with the coupon.
"""

from __future__ import annotations

from hashlib import blake2b

from django.db.models import Case, Expression, F, IntegerField, OuterRef, Subquery, Value, When
from django.db.models.functions import Cast, Coalesce, Concat
from waffle.models import Flag

from .admission.reservations import GATE

FLAG = "issue-worker"
_ALL_USERS = 1000


def rollout_permille() -> Expression:
    """Return an expression for a query of coupons: users per thousand on the Redis queue, 0 without a gate."""
    coupon_flag = _flag_permille(Concat(Value(f"{FLAG}-"), OuterRef("coupon_type")))
    global_flag = _flag_permille(Value(FLAG))
    return Case(When(admission=GATE, then=Coalesce(coupon_flag, global_flag, Value(0))), default=Value(0))


def uses_redis_queue(user_id: int, permille: int) -> bool:
    """Whether the user is among ``permille`` of a thousand users. A larger value keeps the users of a smaller one."""
    if permille <= 0:
        return False
    digest = blake2b(str(user_id).encode(), digest_size=8).digest()
    return int.from_bytes(digest) % _ALL_USERS < permille


def _flag_permille(flag_name: Expression) -> Subquery:
    permille = Case(
        When(everyone=True, then=Value(_ALL_USERS)),
        When(everyone=False, then=Value(0)),
        default=Cast(Coalesce(F("percent"), Value(0)) * Value(_ALL_USERS // 100), IntegerField()),
    )
    return Subquery(Flag.objects.filter(name=flag_name).values(permille=permille), output_field=IntegerField())
