"""A rehearsal: a small sale through the running processes, which no shopper and no figure sees."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import CommandError, call_command
from django.test import Client

from common.postgres.clock import database_time
from common.processes.lifecycle import StopFlag
from coupons import coupon_audit
from coupons.admission.gate.load import load
from coupons.admission.gate.store import GateStore
from coupons.alarms import SoldShare
from coupons.coupon_cache import coupon_cache
from coupons.models import Coupon, IssueRequest, Notification, UserCoupon
from coupons.policy import FIRST_REHEARSAL_USER
from coupons.preflight.clone import clone_create
from coupons.preflight.rehearsal import UNITS, USERS, rehearse
from coupons.preflight.senders import CodeSender, HttpSender, Sender
from coupons.status_rebuild import statuses_rebuild
from couponsite.admin.viewers import VIEWERS
from couponsite.auth.tokens import issue_access_token
from devstack import wait_until
from devstack.ports import free_port
from kafka_bridge.models import OperatorAction, ProcessHeartbeat
from kafka_bridge.operating.housekeeping import housekeep
from kafka_bridge.operating.preflight import CheckLine, Verdict, is_go
from kafka_bridge.operating.samples import counts_since
from tests.admin.pages import html_of, rows_of
from tests.processes.conftest import Web
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


@pytest.fixture
def over_http(web: Web) -> HttpSender:
    """The accept API of a web process that has reported what it accepted for earlier tests."""
    wait_until(ProcessHeartbeat.objects.filter(role="web").exists, 60, "web does not report")
    return HttpSender(f"http://127.0.0.1:{web.port}", issue_access_token)


def run(coupon: Coupon, seconds: float = 30.0, sender: Sender | None = None) -> list[CheckLine]:
    return rehearse(
        coupon.coupon_type, actor="olga", reason="today", stop=StopFlag(), sender=sender, step_seconds=seconds
    )


def test_every_admission_is_rehearsed_and_nothing_shows_of_it(
    over_http: HttpSender,
    sale_processes: Service,
    alimtalk: Provider,
    make_coupon: MakeCoupon,
    token: Token,
    redis_flushed: None,
) -> None:
    before = number_accepted()
    steps = ["copy", "accepted", "published", "decided", "status", "results"]
    coupons = {admission: make_coupon(admission=admission, coupon_type=admission.upper()) for admission in
               ("queue", "gate", "reserve")}  # fmt: skip
    for admission, coupon in coupons.items():
        sender = CodeSender() if admission == "reserve" else over_http
        lines = run(coupon, sender=sender)
        assert is_go(lines), lines
        assert sender.way in lines[1].found
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
    assert OperatorAction.objects.filter(action="coupon.rehearse", reason="today").count() == 3

    # A request that is not of a rehearsal is counted; a shopper gets nothing of an open copy.
    open_copy = clone_create(coupons["queue"], units=1, actor="olga", reason="")
    ((shopper,), (other,)) = over_http.send(open_copy, [7]), over_http.send(coupons["queue"], [7])
    assert (shopper.request_id, shopper.code) == (None, "not_found")
    assert other.request_id is not None
    wait_until(IssueRequest.objects.filter(request_id=other.request_id).exists, 30, "it is not decided")
    wait_until(lambda: alimtalk.calls, 30, "it is not notified")
    sale_processes.processes["issuer"].stop()
    sale_processes.processes["results"].stop()
    # A process that ends writes what it has counted.
    assert {name: counts_since(600)[name]["handled"] for name in ("issue", "results")} == {"issue": 1, "results": 1}
    wait_until(lambda: number_accepted() > before, 30, "web counts nothing")
    assert number_accepted() == before + 1
    lines = run(coupons["queue"], seconds=1.5)
    assert [line.name for line in lines if line.verdict is Verdict.NO_GO] == ["decided"]
    assert Coupon.objects.filter(rehearsal=True).order_by("-id")[0].window.state(database_time(), UNITS) == "CLOSED"


def number_accepted() -> float:
    return counts_since(600).get("accept", {}).get("accepted", 0.0)


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
    asked = client.post("/api/v1/coupons/issue-async", body, content_type="application/json", headers=token(7))
    viewer = User.objects.create_user("victor", is_staff=True)
    viewer.groups.add(Group.objects.get(name=VIEWERS))
    staff = Client()
    staff.force_login(viewer)
    lists = [staff.get(f"/admin/coupons/{name}/") for name in ("coupon", "usercoupon", "issuerequest")]
    assert [len(rows_of(response)) for response in lists] == [3, 0, 0]
    paths = ("/ops/", "/ops/blocks", f"/ops/requests?user={FIRST_REHEARSAL_USER}")
    pages = [html_of(response) for response in (*lists, *(staff.get(path) for path in paths))]
    return [by_id.status_code, asked.status_code] == [404, 404] and not any(clone.coupon_type in page for page in pages)


@pytest.mark.django_db(transaction=True)
def test_a_sold_out_copy_raises_no_alarm(make_coupon: MakeCoupon) -> None:
    judge = SoldShare()
    clone = clone_create(make_coupon(coupon_type="SUMMER"), units=UNITS, actor="olga", reason="")
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


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("redis_flushed")
@pytest.mark.parametrize("by", ["housekeeping", "the next rehearsal"])
def test_the_gate_of_a_killed_rehearsal_is_deleted(by: str, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(coupon_type="SUMMER", admission="gate")
    killed, running = (clone_create(coupon, units=UNITS, actor="olga", reason="") for _ in range(2))
    gates = {one.id: GateStore(one.id) for one in (coupon, killed, running)}
    for gate in gates.values():
        load(gate)
    long_ago = database_time() - timedelta(hours=1, seconds=1)
    Coupon.objects.filter(id__in=[coupon.id, killed.id]).update(opens_at=long_ago, closes_at=long_ago)
    if by == "housekeeping":
        assert housekeep(StopFlag()).deleted["gates of rehearsals"] > 0
    else:
        run(coupon, seconds=0.0)
    assert {one for one, gate in gates.items() if gate.is_loaded()} == {coupon.id, running.id}


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://web", "http://", "http://web/?a=1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(CommandError, match="is no address"):
        call_command("preflight", "SUMMER", "--rehearse", "--url", url)


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("redis_flushed")
def test_a_web_process_that_is_not_there_is_named(make_coupon: MakeCoupon) -> None:
    lines = run(make_coupon(), sender=HttpSender(f"http://127.0.0.1:{free_port()}", issue_access_token))
    assert [(line.name, line.verdict) for line in lines] == [
        ("copy", Verdict.GO), ("accepted", Verdict.NO_GO), ("cleanup", Verdict.GO),
    ]  # fmt: skip
    assert "ConnectError" in lines[1].found
