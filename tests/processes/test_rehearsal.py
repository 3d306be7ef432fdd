"""A rehearsal: a small sale through the running processes, which no shopper and no figure sees."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.test import Client

from common.postgres.clock import database_time
from common.processes.lifecycle import StopFlag
from coupons import coupon_audit
from coupons.admission.gate.store import GateStore
from coupons.alarms import SoldShare
from coupons.coupon_cache import coupon_cache
from coupons.models import Coupon, IssueRequest, Notification, UserCoupon
from coupons.policy import FIRST_REHEARSAL_USER
from coupons.preflight.clone import clone_create
from coupons.preflight.rehearsal import UNITS, USERS, rehearse
from coupons.status_rebuild import statuses_rebuild
from couponsite.admin.viewers import VIEWERS
from kafka_bridge.models import OperatorAction
from kafka_bridge.operating.preflight import CheckLine, Verdict, is_go
from tests.support.provider import Provider
from tests.support.service import Service, environment

MakeCoupon = Callable[..., Coupon]
Token = Callable[..., dict[str, str]]


@pytest.fixture
def sale_processes(transactional_db: None, topics: str, alimtalk: Provider, tmp_path: Path) -> Iterator[Service]:
    """Relay, issuer and the group of results, which notifies users."""
    service = Service(tmp_path, environment(ALIMTALK_URL=alimtalk.url))
    service.start("relay")
    service.start_command("consume_coupons", "--group", "issue", name="issuer")
    service.start_command("consume_coupons", "--group", "results", name="results")
    yield service
    service.end()


def run(coupon: Coupon, seconds: float = 30.0) -> list[CheckLine]:
    return rehearse(coupon.coupon_type, actor="olga", stop=StopFlag(), step_seconds=seconds)


def test_every_admission_is_rehearsed_and_nothing_shows_of_it(
    sale_processes: Service, alimtalk: Provider, make_coupon: MakeCoupon, token: Token, redis_flushed: None
) -> None:
    steps = ["copy", "accepted", "published", "decided", "status", "results"]
    coupons = {admission: make_coupon(admission=admission, coupon_type=admission.upper()) for admission in
               ("queue", "gate", "reserve")}  # fmt: skip
    for admission, coupon in coupons.items():
        lines = run(coupon)
        assert is_go(lines), lines
        assert [line.name for line in lines] == [*steps, *(["gate"] if admission == "gate" else []), "cleanup"]
    clones = list(Coupon.objects.filter(rehearsal=True))
    assert [clone.admission for clone in clones] == list(coupons)
    assert all(clone.issued == UNITS and clone.reserved == 0 for clone in clones)
    # The issuer decides all of a queue; the others refuse five users and the repeated request at once.
    assert IssueRequest.objects.count() == USERS + 1 + 2 * UNITS
    assert not GateStore(clones[1].id).is_loaded()

    assert [alimtalk.calls, Notification.objects.count()] == [[], 0]
    user = FIRST_REHEARSAL_USER
    assert UserCoupon.objects.filter(user_id=user).count() == 3
    assert shown_to(user, token) == sorted(coupons)
    assert is_hidden(clones[1], token)
    assert set(coupon_audit.stock()) == {"QUEUE", "GATE", "RESERVE"}
    assert not coupon_audit.decided()
    assert not coupon_audit.published()
    assert statuses_rebuild(stop=StopFlag()) == 0
    call_command("rebuild_views", "--from-topics", stdout=io.StringIO())
    call_command("check_invariants", stdout=io.StringIO())
    assert OperatorAction.objects.filter(action="coupon.rehearse").count() == 3

    sale_processes.processes["issuer"].stop()
    lines = run(coupons["queue"], seconds=1.5)
    assert [line.name for line in lines if line.verdict is Verdict.NO_GO] == ["decided"]
    assert Coupon.objects.filter(rehearsal=True).order_by("-id")[0].window.state(database_time(), UNITS) == "CLOSED"


def shown_to(user: int, token: Token) -> list[str]:
    """The coupons in the list of the shop; that the user has none is asserted too."""
    client = Client()
    owned = client.get(f"/api/v1/users/{user}/coupons", headers=token(user)).json()
    assert owned["results"] == []
    listed = client.get("/api/v1/coupons", headers=token(user)).json()["results"]
    return sorted(item["couponType"].lower() for item in listed)


def is_hidden(clone: Coupon, token: Token) -> bool:
    """Whether the API and the pages do not know the copy."""
    client, header = Client(), token(FIRST_REHEARSAL_USER)
    coupon_cache.clear()
    by_id = client.get(f"/api/v1/coupons/{clone.id}", headers=header)
    body = {"couponType": clone.coupon_type}
    asked = client.post("/api/v1/coupons/issue-async", body, content_type="application/json", headers=header)
    viewer = User.objects.create_user("victor", is_staff=True)
    viewer.groups.add(Group.objects.get(name=VIEWERS))
    staff = Client()
    staff.force_login(viewer)
    pages = [staff.get(path).content.decode() for path in ("/ops/", "/ops/blocks", "/admin/coupons/coupon/")]
    return [by_id.status_code, asked.status_code] == [404, 404] and not any(clone.coupon_type in page for page in pages)


@pytest.mark.django_db(transaction=True)
def test_a_sold_out_copy_raises_no_alarm(make_coupon: MakeCoupon) -> None:
    judge = SoldShare()
    clone = clone_create(make_coupon(coupon_type="SUMMER"), units=UNITS, actor="olga")
    assert list(judge()) == []
    Coupon.objects.filter(id=clone.id).update(issued=UNITS)
    assert list(judge()) == []
    # The control: without the flag the same coupon is watched.
    Coupon.objects.filter(id=clone.id).update(rehearsal=False, issued=99, total_quantity=100)
    assert [condition.subject for condition in judge()] == [clone.coupon_type]


@pytest.mark.django_db(transaction=True)
def test_the_step_that_did_not_happen_is_named_and_the_copy_is_closed(topics: str, make_coupon: MakeCoupon) -> None:
    lines = run(make_coupon(coupon_type="SUMMER"), seconds=0.3)
    assert [(line.name, line.verdict) for line in lines][-2:] == [
        ("published", Verdict.NO_GO),
        ("cleanup", Verdict.GO),
    ]
    assert "relay_outbox" in lines[-2].remedy
    (clone,) = Coupon.objects.filter(rehearsal=True)
    assert clone.closes_at is not None
    assert clone.closes_at > clone.opens_at
    assert run(make_coupon(coupon_type="WINTER", admission="reserve"), seconds=0.3)[-1].name == "cleanup"
