"""Which requests of the gate go to the issue worker: a share of the users, by flags of waffle's.

``issue-worker-<COUPON_TYPE>`` for one coupon, else ``issue-worker`` for all. Everyone "yes" is 100 %, "no" is 0 %; else
its percentage counts, and a flag without one is 0 %.

Only waffle's table, admin page and command are used. Its own way to ask a flag draws lots per browser, keeps them in
cookies and flags in a cache that may be away, whereas here the same user goes the same way in every process and without
a cookie, a flag is at most a second old, and a request costs no query for it: it comes with the catalogue's.
"""

from __future__ import annotations

from hashlib import blake2b

from django.db.models import Case, Expression, F, IntegerField, OuterRef, Subquery, Value, When
from django.db.models.functions import Cast, Coalesce, Concat
from waffle.models import Flag

from .admission.reservations import GATE

FLAG = "issue-worker"
_ALL = 1000


def rollout_share() -> Expression:
    """For a query of coupons: of a thousand users, those whose requests go to the worker; 0 where there is no gate."""
    own, general = _share(Concat(Value(f"{FLAG}-"), OuterRef("coupon_type"))), _share(Value(FLAG))
    return Case(When(admission=GATE, then=Coalesce(own, general, Value(0))), default=Value(0))


def uses_redis_queue(user_id: int, share: int) -> bool:
    """Whether a user is among that many of a thousand. A larger share has the users of a smaller one, and others."""
    if share <= 0:
        return False
    digest = blake2b(str(user_id).encode(), digest_size=8).digest()
    return int.from_bytes(digest) % _ALL < share


def _share(flag_name: Expression) -> Subquery:
    share = Case(
        When(everyone=True, then=Value(_ALL)),
        When(everyone=False, then=Value(0)),
        default=Cast(Coalesce(F("percent"), Value(0)) * Value(_ALL // 100), IntegerField()),
    )
    return Subquery(Flag.objects.filter(name=flag_name).values(share=share), output_field=IntegerField())
