"""Every action that the documents list is done once, through its page or command, and found in the audit trail."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from django.core.management import CommandError, call_command
from django.db.models.functions import Now
from django.test import Client
from pytest_django import Settings

from common.postgres.clock import database_time, isoformat_z
from coupons.coupon_cache import coupon_cache
from coupons.models import Coupon
from coupons.preflight import rehearsal
from kafka_bridge.models import DeadLetter, HeldMessage, OperatorAction, OutboxHold, ProcessHeartbeat, Redrive
from kafka_bridge.operating.heartbeat import Heartbeat
from kafka_bridge.operating.notifications import send_next
from kafka_bridge.operating.worker_command import shell_user
from kafka_bridge.registry import prefixed
from orders.models import Product
from tests.admin.conftest import superuser  # noqa: F401
from tests.admin.pages import errors_of, form_of, html_of
from tests.effects.cast import completed
from tests.redriving.letters import create, dead_letters, start, step
from tests.support.outbox import TOPIC
from tests.support.provider import Provider, close_http_client

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("redis_flushed")]

REASON = "as the customer asked"
LETTERS = "/admin/kafka_bridge/deadletter/"
TERMS = {"discount_type": "FIXED", "discount_value": "1000", "total_quantity": "3", "name": "Ice"}


class Place(NamedTuple):
    """What an action is done with: a superuser's browser, a coupon SUMMER of ten units, and a folder."""

    browser: Client
    coupon: Coupon
    folder: Path


class Expected(NamedTuple):
    """What the record says besides actor and time. ``reason``: empty where the page or command asks for none."""

    subject: str
    before: Any = None
    after: Any = None
    reason: str = REASON


Act = Callable[[Place], Expected]
ACTIONS: dict[str, Act] = {}


def action(name: str) -> Callable[[Act], Act]:
    def register(act: Act) -> Act:
        assert ACTIONS.setdefault(name, act) is act
        return act

    return register


def command(*arguments: str) -> None:
    """Run a command of an operator with the reason; what it says, and whether it refuses, is not of interest."""
    call_command(*arguments, stdout=StringIO(), stderr=StringIO())


def post(place: Place, path: str, **values: Any) -> None:
    assert place.browser.post(path, {"reason": REASON} | values).status_code == 303, path


@action("coupon.create")
def _(place: Place) -> Expected:
    given = form_of(place.browser.get("/admin/coupons/coupon/add/")) | TERMS | {"coupon_type": "SPRING"}
    assert errors_of(place.browser.post("/admin/coupons/coupon/add/", given)) == {}
    spring = Coupon.objects.get(coupon_type="SPRING")
    after = {
        "coupon_type": "SPRING", "name": "Ice", "admission": "queue", "total_quantity": 3, "paused": False,
        "opens_at": isoformat_z(spring.opens_at), "closes_at": None, "discount_type": "FIXED", "discount_value": 1000,
        "discount_cap": None, "min_order_amount": 0, "valid_days": None, "refund_policy": spring.refund_policy,
    }  # fmt: skip
    return Expected("coupon SPRING", after=after, reason="")


@action("coupon.edit")
def _(place: Place) -> Expected:
    path = f"/admin/coupons/coupon/{place.coupon.pk}/change/"
    assert errors_of(place.browser.post(path, form_of(place.browser.get(path)) | {"name": "Ice"})) == {}
    return Expected("coupon SUMMER", {"name": place.coupon.name}, {"name": "Ice"}, reason="")


def control(verb: str, place: Place, before: dict[str, Any], after: dict[str, Any], *more: str) -> Expected:
    Coupon.objects.update(**before)
    command("control_coupon", "SUMMER", verb, "--reason", REASON, *more)
    return Expected("coupon SUMMER", before, after)


ACTIONS["coupon.pause"] = lambda place: control("pause", place, {"paused": False}, {"paused": True})
ACTIONS["coupon.resume"] = lambda place: control("resume", place, {"paused": True}, {"paused": False})
ACTIONS["coupon.restock"] = lambda place: control(
    "restock", place, {"total_quantity": 10}, {"total_quantity": 15}, "--quantity", "5"
)


@action("coupon.open")
def _(place: Place) -> Expected:
    command("control_coupon", "SUMMER", "close")
    place.coupon.refresh_from_db()
    assert place.coupon.closes_at is not None
    command("control_coupon", "SUMMER", "open", "--reason", REASON)
    return Expected("coupon SUMMER", {"closes_at": isoformat_z(place.coupon.closes_at)}, {"closes_at": None})


@action("coupon.close")
def _(place: Place) -> Expected:
    command("control_coupon", "SUMMER", "close", "--reason", REASON)
    place.coupon.refresh_from_db()
    assert place.coupon.closes_at is not None
    return Expected("coupon SUMMER", {"closes_at": None}, {"closes_at": isoformat_z(place.coupon.closes_at)})


@action("coupon.issue_batch")
def _(place: Place) -> Expected:
    users = place.folder / "users.csv"
    users.write_text("userId\n1\n2\n")
    command("issue_batch", "SUMMER", str(users), "--id", "crm", "--no-wait")
    return Expected("coupon SUMMER", after={"batchId": "crm", "lines": 2}, reason="")


@action("coupon.rehearse")
def _(place: Place) -> Expected:
    with pytest.MonkeyPatch.context() as patch:
        # Without a relay nothing is published.
        patch.setattr(
            "couponsite.management.commands.preflight.rehearse", partial(rehearsal.rehearse, step_seconds=0.1)
        )
        with pytest.raises(CommandError, match="no-go"):
            command("preflight", "SUMMER", "--rehearse", "--reason", REASON)
    return Expected("coupon SUMMER", after={"clone": Coupon.objects.get(rehearsal=True).coupon_type})


@action("product.create")
def _(place: Place) -> Expected:
    command("create_product", "Socks", "--price", "5000")
    return Expected(f"product {Product.objects.get().pk}", after={"name": "Socks", "price": 5000}, reason="")


@action("product.edit")
def _(place: Place) -> Expected:
    socks = Product.objects.create(name="Socks", price=5000)
    place.browser.post(f"/admin/orders/product/{socks.pk}/change/", {"name": "Socks", "price": "4000"})
    return Expected(f"product {socks.pk}", {"price": 5000}, {"price": 4000}, reason="")


@action("rollout.set")
def _(place: Place) -> Expected:
    command("set_rollout", "issue-worker", "12.5", "--reason", "the first users")
    values = {"flag": "issue-worker", "percent": "", "reason": REASON}
    place.browser.post("/admin/coupons/rolloutchange/add/", values)
    return Expected("flag issue-worker", {"percent": "12.5"}, {"percent": None})


def silenced(place: Place) -> dict[str, Any]:
    post(place, "/ops/alerts/silence", rule="lag", seconds=3600)
    (record,) = OperatorAction.objects.filter(action="alert.silence")
    after = record.after
    assert isinstance(after, dict)
    assert (after["reason"], after["actor"]) == (REASON, "olga")
    assert timedelta(minutes=59) < datetime.fromisoformat(after["until"]) - database_time() <= timedelta(hours=1)
    return after


@action("alert.silence")
def _(place: Place) -> Expected:
    return Expected("rule lag", after=silenced(place))


@action("alert.unsilence")
def _(place: Place) -> Expected:
    before = silenced(place)
    post(place, "/ops/alerts/unsilence", rule="lag")
    return Expected("rule lag", before)


HOLD = {"topic": TOPIC, "key": "7", "reason": REASON, "actor": "olga"}


@action("hold.create")
def _(place: Place) -> Expected:
    post(place, "/ops/holds/hold", topic=TOPIC, key="7", key_format="text")
    return Expected(f"key 7 of topic {TOPIC}", after=HOLD)


@action("hold.release")
def _(place: Place) -> Expected:
    hold = OutboxHold.objects.create(topic=TOPIC, key=b"7", reason=REASON, actor="olga")
    post(place, "/ops/holds/release", hold=hold.pk)
    return Expected(f"key 7 of topic {TOPIC}", HOLD)


@action("hold.retry")
def _(place: Place) -> Expected:
    HeldMessage.objects.create(message_id=1, shard=1, topic=TOPIC, reason="topic")
    post(place, "/ops/holds/retry", topic=TOPIC)
    return Expected(f"topic {TOPIC}")


@action("group.pause")
def _(place: Place) -> Expected:
    post(place, "/ops/groups/control", name="issue", action="pause")
    return Expected("issue", after={"paused": True})


@action("group.resume")
def _(place: Place) -> Expected:
    command("control_group", "issue", "pause", "--reason", "wrong terms")
    (paused,) = OperatorAction.objects.all()
    post(place, "/ops/groups/control", name="issue", action="resume")
    before = OperatorAction.objects.get(action="group.resume").before
    assert isinstance(before, dict)
    assert abs(datetime.fromisoformat(before["since"]) - paused.created_at) < timedelta(seconds=5)
    return Expected("issue", {"by": shell_user(), "since": before["since"], "reason": "wrong terms"})


def instruct(place: Place, verb: str, **values: Any) -> Expected:
    topic = prefixed("coupon-issue-request")
    post(place, "/ops/groups/control", name="issue", topic=topic, partition=0, action=verb, **values)
    return Expected(f"issue: {topic}[0]", after=values or None)


ACTIONS["partition.retry"] = lambda place: instruct(place, "retry")
ACTIONS["partition.continue"] = lambda place: instruct(place, "continue")
ACTIONS["partition.dead_letter"] = lambda place: instruct(place, "dead_letter", offset=17)


@action("redrive.create")
def _(place: Place) -> Expected:
    (letter,) = dead_letters("monitoring", [completed(1)])
    post(place, "/ops/redrives/create", name="June", rate=50, ids=str(letter))
    after = {"name": "June", "letters": 1, "rate": 50, "selection": {"selected": 1}}
    return Expected(str(Redrive.objects.get()), after=after)


def redrive(place: Place, verb: str, before: Any, after: Any, *, running: bool = False, **values: Any) -> Expected:
    dead_letters("monitoring", [completed(1)])
    made = create(rate=1)
    if running:
        start(made)
    else:
        step()
    if verb == "resume":
        post(place, f"/ops/redrives/{made.pk}/pause")
    post(place, f"/ops/redrives/{made.pk}/{verb}", **values)
    return Expected(str(made), before, after)


def state(name: str) -> dict[str, str]:
    return {"state": name}


IDLE = {"wants_preview": False, "starts_after_preview": False}
ACTIONS |= {
    "redrive.start": lambda place: redrive(
        place, "start", state("previewed") | {"wants_preview": False}, state("running") | {"wants_preview": False}
    ),
    "redrive.preview": lambda place: redrive(
        place,
        "preview",
        IDLE | {"accepts_delay": False},
        IDLE | {"wants_preview": True, "accepts_delay": True},
        accepts_delay="on",
    ),
    "redrive.set_rate": lambda place: redrive(place, "rate", {"rate": 1}, {"rate": 7}, rate=7),
    "redrive.pause": lambda place: redrive(place, "pause", state("running"), state("paused"), running=True),
    "redrive.resume": lambda place: redrive(place, "resume", state("paused"), state("running"), running=True),
    "redrive.cancel": lambda place: redrive(
        place, "cancel", IDLE | state("previewed"), IDLE | state("cancelled")
    ),
}  # fmt: skip


def act_on_letter(place: Place, verb: str, before: dict[str, Any], after: dict[str, Any]) -> Expected:
    (letter,) = dead_letters("monitoring", [completed(1)])
    DeadLetter.objects.update(replays=before["replays"])
    values = {"action": verb, "_selected_action": [letter]}
    assert 'name="reason"' in html_of(place.browser.post(LETTERS, values))
    post(place, LETTERS, **values)
    message = str(DeadLetter.objects.get())
    return Expected(f"dead letter {letter}", before | {"message": message}, after)


ACTIONS["dead_letter.discard"] = lambda place: act_on_letter(
    place, "discard", {"state": "open", "replays": 1}, {"state": "discarded"}
)
ACTIONS["dead_letter.release"] = lambda place: act_on_letter(
    place, "release", {"state": "quarantined", "replays": 3}, {"state": "open", "replays": 0}
)


@action("process.forget")
def _(place: Place) -> Expected:
    Heartbeat("relay").beat()
    ProcessHeartbeat.objects.update(seen_at=Now() - timedelta(minutes=10))
    row = ProcessHeartbeat.objects.get()
    command("forget_processes", "--reason", REASON)
    return Expected(f"relay on {row.host} (pid {row.pid})")


def republish(after: dict[str, Any]) -> Expected:
    command("republish_topic", TOPIC, "--reason", REASON)
    return Expected(f"topic {TOPIC}", after=after)


ACTIONS["topic.republish"] = lambda place: republish({"since": None, "afterRow": 0})
ACTIONS["topic.republish_end"] = lambda place: republish({"published": 0, "refused": 0, "lastRow": 0})


@action("service.repair")
def _(place: Place) -> Expected:
    command("reconcile", "--repair")
    return Expected("reconcile", after={"patienceSeconds": 60}, reason="")


@action("views.rebuild")
def _(place: Place) -> Expected:
    command("rebuild_views")
    return Expected("ranking and statuses", after={"fromTopics": False}, reason="")


@action("test_alert.send")
def _(place: Place) -> Expected:
    post(place, "/ops/preflight/SUMMER/test-alert")
    return Expected("test-alert")


@action("test_alert.deliver")
def _(place: Place) -> Expected:
    post(place, "/ops/preflight/SUMMER/test-alert")
    assert send_next()
    return Expected("test-alert", reason="")


# What no page does.
BY_COMMAND = {
    "coupon.issue_batch", "coupon.rehearse", "process.forget", "product.create", "service.repair", "views.rebuild",
    "topic.republish", "topic.republish_end",
    *(f"coupon.{verb}" for verb in ("open", "pause", "resume", "close", "restock")),
}  # fmt: skip
ACTORS = dict.fromkeys(BY_COMMAND, shell_user()) | {"test_alert.deliver": "the sender of notifications"}


def documented(settings: Settings) -> set[str]:
    """The actions of the table in the documents; ``.pause`` follows ``coupon.open``."""
    section = (settings.BASE_DIR / "docs" / "operations.md").read_text().partition("\n## Audit\n")[2]
    names, subject = set(), ""
    for row in re.findall(r"^\| (`.*?) \|", section.partition("\n## ")[0], re.MULTILINE):
        for name in re.findall(r"`([a-z_]*\.[a-z_]+)`", row):
            subject = name.partition(".")[0] or subject
            names.add(f"{subject}.{name.partition('.')[2]}")
    return names


def test_the_documents_list_every_action(settings: Settings) -> None:
    assert documented(settings) == set(ACTIONS)


@pytest.fixture
def place(superuser: Client, make_coupon: Callable[..., Coupon], tmp_path: Path) -> Place:  # noqa: F811
    coupon_cache.clear()
    return Place(superuser, make_coupon(coupon_type="SUMMER"), tmp_path)


@pytest.fixture(autouse=True)
def _webhook(settings: Settings) -> Iterator[None]:
    webhook = Provider()
    webhook.up()
    settings.ALERT_WEBHOOK_URL = webhook.url
    yield
    close_http_client()
    webhook.close()


@pytest.mark.parametrize("name", sorted(ACTIONS))
def test_an_action_is_recorded_with_who_when_why_before_and_after(
    place: Place, name: str, request: pytest.FixtureRequest
) -> None:
    if name.startswith("topic."):
        request.getfixturevalue("topics")
    begin = database_time()
    subject, before, after, reason = ACTIONS[name](place)
    found = OperatorAction.objects.filter(action=name).order_by("id").last()
    assert found is not None
    assert begin <= found.created_at <= database_time()
    recorded = (found.actor, found.subject, found.reason, found.before, found.after)
    assert recorded == (ACTORS.get(name, "olga"), subject, reason, before, after)
    assert name in html_of(place.browser.get("/ops/audit"))
