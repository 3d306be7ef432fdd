"""The page of groups: what each partition does, and what an operator may do about it."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import msgspec
import pytest
from django.contrib.auth.models import Permission
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from kafka_bridge.lag import HeldPartition
from kafka_bridge.models import GroupPause, OperatorAction, PartitionInstruction, ProcessHeartbeat, SweptPartition
from kafka_bridge.operating.group_pauses import PauseTarget, pause
from kafka_bridge.operating.partition_instructions import instruct, last_instructions
from kafka_bridge.registry import prefixed
from tests.admin.pages import html_of, messages_of
from tests.ops.conftest import make_viewer, signed_in

pytestmark = pytest.mark.django_db

PATH = "/ops/groups"
TOPIC = prefixed("coupon-issue-request")
OLGA: dict[str, Any] = {"actor": "olga", "reason": "wrong <terms>"}
ACTIONS = ["pause", "resume", "retry", "continue", "dead_letter"]


@pytest.fixture
def pauser() -> Client:
    user = make_viewer("olga")
    user.user_permissions.add(Permission.objects.get(codename="pause_groups"))
    return signed_in(user)


def issuer(**fields: Any) -> None:
    """A running issuer that holds partition 0 of the requests."""
    held = HeldPartition(group="issue", topic=TOPIC, partition=0, **({"lag": 0, "lag_ms": 0} | fields))
    now = timezone.now()
    ProcessHeartbeat.objects.create(
        id=uuid4(), role="consumer", host="node-1", pid=42, started_at=now, seen_at=now, turned_at=now,
        groups=["issue"], partitions=[msgspec.to_builtins(held)],
    )  # fmt: skip


def state_of(client: Client, number: int = 0) -> Any:
    states = {group.name: group for group in client.get(PATH).context["groups"]}
    return next(one for one in states["issue"].partitions if one.target == PauseTarget("issue", TOPIC, number))


def control(client: Client, **values: Any) -> list[str]:
    response = client.post(f"{PATH}/control", {"name": "issue", "reason": "wrong terms"} | values)
    assert (response.status_code, response["Location"]) == (303, PATH)
    return messages_of(client.get(PATH))


def test_every_group_and_worker_is_listed_with_its_partitions(viewer: Client) -> None:
    page = html_of(viewer.get(PATH))
    for name in ("issue", "results", "notification", "relay", "issue-worker", "dead-letters"):
        assert f'id="group-{name}"' in page
    assert f"{TOPIC}[4]" in page
    assert "the workers of the Redis queue, 0 running processes" in page


def test_the_states_of_a_partition(viewer: Client) -> None:
    assert state_of(viewer).state == "no consumer"
    issuer()
    assert state_of(viewer).state == "ok"
    pause(PauseTarget("issue", TOPIC, 0), **OLGA)
    paused = state_of(viewer)
    assert (paused.state, paused.obeys) == ("paused", False)
    assert "not obeyed yet" in html_of(viewer.get(PATH))
    ProcessHeartbeat.objects.all().delete()
    issuer(state="paused", lag=None, lag_ms=None)
    SweptPartition.objects.create(
        consumer_group="issue",
        topic=TOPIC,
        partition=0,
        messages=1234,
        oldest_at=timezone.now(),
        read_at=timezone.now(),
    )
    paused = state_of(viewer)
    assert (paused.state, paused.obeys, paused.lag.messages) == ("paused", True, 1234)
    GroupPause.objects.all().delete()
    assert state_of(viewer).state == "resuming"


def test_a_partition_at_its_limit_shows_where_it_waits_and_what_can_be_done(pauser: Client, viewer: Client) -> None:
    issuer(state="poison-limit", waits_at=17, error="21 messages in a row fail", state_seconds=90.0)
    page = html_of(pauser.get(PATH))
    assert "It waits at offset 17" in page
    assert "21 messages in a row fail" in page
    assert "Go on: as many dead letters again" in page
    assert "Dead-letter offset 17" in page
    seen_by_viewer = html_of(viewer.get(PATH))
    assert "It waits at offset 17" in seen_by_viewer
    assert "/ops/groups/control" not in seen_by_viewer


def test_every_page_names_what_is_paused_to_every_user(viewer: Client) -> None:
    assert "is paused" not in html_of(viewer.get("/ops/alerts"))
    pause(PauseTarget("issue"), **OLGA)
    pause(PauseTarget("results", TOPIC, 3), **OLGA)
    for path in ("/ops/", "/ops/alerts", "/ops/processes", "/ops/requests", PATH, "/ops/docs/operations.md"):
        page = html_of(viewer.get(path))
        assert "<strong>issue is paused</strong> by olga since 2" in page, path
        assert f"<strong>results: {TOPIC}[3] is paused</strong>" in page
        assert "UTC: wrong &lt;terms&gt;" in page


def test_an_operator_pauses_and_resumes_a_group_and_a_partition(pauser: Client) -> None:
    assert control(pauser, action="pause") == ["issue is paused; every process obeys within two seconds."]
    assert control(pauser, action="pause") == ["issue was paused already, by olga."]
    (said,) = control(pauser, action="pause", topic=TOPIC, partition=2)
    assert said.startswith(f"issue: {TOPIC}[2] is paused")
    assert control(pauser, action="resume") == ["issue is resumed."]
    assert control(pauser, action="resume") == ["issue was not paused any more."]
    assert [str(row) for row in GroupPause.objects.all()] == [f"issue: {TOPIC}[2]"]
    assert {(row.actor, row.reason) for row in OperatorAction.objects.all()} == {("olga", "wrong terms")}
    assert control(pauser, name="relay", action="pause") == ["relay is paused; every process obeys within two seconds."]


def test_groups_that_share_an_id_say_so_and_are_paused_together(pauser: Client, settings: Settings) -> None:
    sharing = ("notification", "data-platform", "monitoring")
    settings.KAFKA_GROUPS = {**settings.KAFKA_GROUPS, **dict.fromkeys(sharing, "order-consumer-group")}
    # Made before they shared the id: their consumer stands still all the same.
    GroupPause.objects.create(consumer_group="monitoring", **OLGA)
    states = {state.name: state for state in pauser.get(PATH).context["groups"]}
    assert all(state.pause for name, state in states.items() if name in sharing)
    assert states["ranking"].pause is None
    (said,) = control(pauser, name="notification", action="resume")
    assert said == "notification (with data-platform, monitoring: they share an id) is resumed."
    assert not GroupPause.objects.exists()
    page = html_of(pauser.get(PATH))
    assert "order-consumer-group, shared with data-platform, monitoring: a pause stops all of them" in page


def test_an_operator_instructs_a_partition_and_sees_the_answer(pauser: Client) -> None:
    issuer(state="retrying", waits_at=17, error="locked")
    form = {"name": "issue", "topic": TOPIC, "partition": 0, "reason": "wrong terms"}
    page = html_of(pauser.get(PATH))
    # One reason for all buttons of a partition: the address of this one has the offset.
    assert f'value="dead_letter" formaction="{PATH}/control?offset=17"' in page
    pauser.post(f"{PATH}/control?offset=17", form | {"action": "dead_letter"})
    row = last_instructions()[PauseTarget("issue", TOPIC, 0)]
    assert (row.action, row.offset, row.actor, row.reason) == ("dead_letter", 17, "olga", "wrong terms")
    assert "not obeyed yet" in html_of(pauser.get(PATH))
    PartitionInstruction.objects.update(answered_at=timezone.now(), answer="nothing was done: it has moved on")
    assert "nothing was done: it has moved on" in html_of(pauser.get(PATH))
    control(pauser, action="retry", topic=TOPIC, partition=0)
    row = last_instructions()[PauseTarget("issue", TOPIC, 0)]
    assert (row.action, row.offset, row.answered_at, row.answer) == ("retry", None, None, "")
    actions = OperatorAction.objects.order_by("id").values_list("action", "after")
    assert list(actions) == [("partition.dead_letter", {"offset": 17}), ("partition.retry", None)]


@pytest.mark.parametrize(
    "values",
    [
        {"action": "pause", "reason": " "},
        {"action": "pause", "reason": "x" * 501},
        {"action": "pause", "reason": "\0"},
        {"action": "pause", "name": "nothing"},
        {"action": "pause", "topic": TOPIC},
        {"action": "pause", "topic": TOPIC, "partition": 99},
        {"action": "pause", "topic": "nothing", "partition": 0},
        {"action": "pause", "offset": 3},
        {"action": "retry"},
        {"action": "retry", "name": "relay"},
        {"action": "dead_letter", "topic": TOPIC, "partition": 0},
        {"action": "dead_letter", "topic": TOPIC, "partition": 0, "offset": 2**63},
        {"action": "stop"},
        {},
    ],
)
def test_what_makes_no_sense_changes_nothing_and_says_so(pauser: Client, values: dict[str, Any]) -> None:
    (said,) = control(pauser, **values)
    assert said.startswith("Nothing was done")
    assert not GroupPause.objects.exists()
    assert not PartitionInstruction.objects.exists()
    assert not OperatorAction.objects.exists()


@pytest.mark.parametrize("action", ACTIONS)
def test_a_viewer_is_refused(viewer: Client, action: str) -> None:
    values = {"name": "issue", "topic": TOPIC, "partition": 0, "offset": 1, "action": action, "reason": "x"}
    assert viewer.post(f"{PATH}/control", values).status_code == 403
    assert not GroupPause.objects.exists()
    assert not PartitionInstruction.objects.exists()


def test_the_page_makes_as_many_queries_however_much_there_is(
    viewer: Client, django_assert_max_num_queries: Any
) -> None:
    issuer()
    for number in range(5):
        pause(PauseTarget("issue", TOPIC, number), **OLGA)
        instruct(PauseTarget("issue", TOPIC, number), PartitionInstruction.Action.RETRY, **OLGA)
    # Session, user, permissions, the banner, and four of the page.
    with django_assert_max_num_queries(9):
        html_of(viewer.get(PATH))
