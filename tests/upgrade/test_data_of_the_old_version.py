"""A database that the old version filled: this version migrates it and goes on. Redis and Kafka are empty."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.test import Client
from pytest_django import DjangoDbBlocker, Settings

from coupons.coupon_cache import coupon_cache
from coupons.models import Coupon, IssueRequest, Reservation, UserCoupon
from couponsite.auth.tokens import issue_access_token
from devstack import wait_until
from kafka_bridge.client import group_lag
from kafka_bridge.models import DeadLetter
from kafka_bridge.outbox.published import anything_unpublished
from orders.models import Order
from tests.cluster.history import first_copies, read_history
from tests.support.kafka import groups_of_the_project, read_to_end
from tests.support.published import unpublished_rows
from tests.support.service import Service, environment, run_command
from tests.upgrade.filled import ADMIN, PASSWORD, RENAMED, RESTOCK, SECRET_KEY, Answered, answered, load, own_database

pytestmark = pytest.mark.usefixtures("redis_flushed")

# Rows that the reconciler publishes again may wait a minute for the relay's next look.
SECONDS = 180.0
# What ``migrate`` writes for itself, and flags: of those only their effect counts.
BOOKKEEPING = {"django_migrations", "django_content_type", "auth_permission", "auth_group_permissions"}
# The times that no calendar has in every zone are changed to the nearest that all have.
CHANGED_TIMES = {
    "1900-01-01T00:00:00Z": "1970-01-01T00:00:00Z",
    "9999-06-01T00:00:00Z": "9998-12-31T23:59:59.999999Z",
}

TOPICS = ("coupon-issue-request", "coupon-issue-response", "order-completed", "order-cancelled")

Row = dict[str, Any]


@pytest.fixture
def filled(django_db_setup: None, django_db_blocker: DjangoDbBlocker, settings: Settings) -> Iterator[None]:
    """The database of the old version, not migrated."""
    settings.SECRET_KEY = SECRET_KEY
    # The rows that wait for the relay do so since the dump was made.
    settings.OUTBOX_MAX_AGE_SECONDS = 10**9
    with django_db_blocker.unblock(), own_database():
        load()
        yield


@pytest.fixture
def migrated(filled: None) -> None:
    """The database of the old version, migrated by this version."""
    migrate()


def migrate() -> None:
    result = run_command("migrate", env=environment())
    assert result.returncode == 0, result.stderr


def read_tables() -> dict[str, list[Row]]:
    """Every row of every table, by the table's name."""
    tables = {}
    with connection.cursor() as cursor:
        cursor.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
        for name in [name for (name,) in cursor.fetchall()]:
            cursor.execute(f"SELECT to_jsonb(row)::text FROM {name} AS row")
            tables[name] = [json.loads(row) for (row,) in cursor.fetchall()]
    return tables


def in_columns_of(old: list[Row], new: list[Row]) -> list[Row]:
    """``new`` without the columns that ``old`` does not have."""
    columns = old[0].keys() if old else set()
    return [{column: row[column] for column in columns} for row in new]


def as_set(rows: list[Row]) -> set[str]:
    return {json.dumps(row, sort_keys=True) for row in rows}


def with_changed_times(value: Any) -> Any:
    text = json.dumps(value)
    for old, new in CHANGED_TIMES.items():
        text = text.replace(old, new).replace(old.replace("Z", "+00:00"), new.replace("Z", "+00:00"))
    return json.loads(text)


def ask_again(recorded: Answered) -> tuple[int, Any]:
    """Make a call of the old version once more; returns status and body."""
    headers = {"Authorization": f"Bearer {issue_access_token(recorded.user)}"}
    if recorded.key is not None:
        headers["Idempotency-Key"] = recorded.key
    body = b"" if recorded.body is None else json.dumps(recorded.body).encode()
    answer = Client().generic(recorded.method, recorded.path, body, "application/json", headers=headers)
    return answer.status_code, answer.json()


def without_server_time(body: Any) -> Any:
    if isinstance(body, dict):
        return {name: without_server_time(value) for name, value in body.items() if name != "serverTime"}
    return [without_server_time(value) for value in body] if isinstance(body, list) else body


def run(*arguments: str, **changes: str) -> str:
    """Run a command of this version, which must end well; returns what it printed."""
    result = run_command(*arguments, env=environment(**changes))
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def unpublished() -> list[tuple[bytes, UUID]]:
    """Key and id of the rows that wait for the relay, in their order."""
    rows = unpublished_rows().order_by("id").values_list("key", "event_id")
    return [(bytes(key or b""), event_id) for key, event_id in rows]


def is_everything_consumed() -> bool:
    return all(group_lag(group.group_id, group.topics) == 0 for group in groups_of_the_project())


def test_every_row_of_the_old_version_is_still_there_unchanged(filled: None) -> None:
    before = {name: rows for name, rows in read_tables().items() if name not in BOOKKEEPING}
    assert sum(map(bool, before.values())) >= 20
    migrate()
    after = read_tables()
    for name, rows in before.items():
        if not name.startswith("waffle_"):
            assert as_set(in_columns_of(rows, after[name])) == as_set(with_changed_times(rows)), name


def test_every_call_is_answered_as_by_the_old_version(migrated: None) -> None:
    for recorded in answered():
        status, body = ask_again(recorded)
        assert status == recorded.status, (recorded, body)
        assert without_server_time(body) == without_server_time(with_changed_times(recorded.answer)), recorded


def test_an_administrator_logs_in_and_finds_the_rows_and_the_history(migrated: None) -> None:
    login = {"username": ADMIN, "password": PASSWORD}
    assert Client().post("/api/v1/auth/token", login, "application/json").status_code == 200
    browser = Client()
    assert browser.post("/admin/login/", login).status_code == 302
    index = browser.get("/admin/")
    pages = [model["admin_url"] for app in index.context["available_apps"] for model in app["models"]]
    assert len(pages) >= 14
    for page in pages:
        changes = browser.get(page).context["cl"]
        assert len(changes.result_list) == min(changes.model.objects.count(), changes.list_per_page), page
    paused = Coupon.objects.get(coupon_type="PAUSED")
    history = browser.get(f"/admin/coupons/coupon/{paused.pk}/history/")
    assert [entry.user.username for entry in history.context["action_list"]] == [ADMIN]
    assert paused.name == RENAMED


def test_what_operators_set_still_holds(migrated: None) -> None:
    entries = {name: coupon_cache.get(name) for name in ("GATE", "GATE_SMALL", "QUEUE")}
    assert {name: entry.rollout_permille for name, entry in entries.items() if entry} == {
        "GATE": 305,
        "GATE_SMALL": 50,
        "QUEUE": 0,
    }
    repeated = json.loads(run("control_coupon", "QUEUE_SMALL", "restock", "--quantity", "3", "--id", RESTOCK))
    assert repeated["totalQuantity"] == 5


def test_what_the_old_version_left_undone_is_done(migrated: None, topics: str, tmp_path: Path) -> None:
    waiting = unpublished()
    by_worker = set(Reservation.objects.filter(by_worker=True).values_list("request_id", flat=True))
    pending = {
        recorded.path: recorded
        for recorded in answered()
        if recorded.method == "GET" and recorded.answer.get("status") == "PENDING"
    }
    requests = {UUID(recorded.answer["requestId"]) for recorded in pending.values() if "requestId" in recorded.answer}
    # Some are to be published, some were and the topic has lost them, and some are the worker's.
    to_publish = requests & {event_id for _, event_id in waiting}
    assert len(to_publish) > 5
    assert len(requests - to_publish - by_worker) > 5
    assert len(by_worker) > 2
    dead_letters = DeadLetter.objects.count()

    service = Service(tmp_path, environment(RECONCILE_PATIENCE_SECONDS="1"))
    try:
        for role in ("relay", "issuer", "effects", "worker"):
            service.start(role)
        service.start_command("reconcile", "--repair", "--every", "1", name="reconciler")
        decided = IssueRequest.objects.filter(request_id__in=requests, status="SUCCESS")
        wait_until(lambda: decided.count() == len(requests), SECONDS, "requests without a coupon", 0.2)
        run("expire_orders")
        wait_until(lambda: not anything_unpublished(), SECONDS, "rows that are not published", 0.2)
        wait_until(is_everything_consumed, SECONDS, "messages that are not consumed", 0.2)
        run("check_invariants", REQUEST_DEADLINE_SECONDS="1")
    finally:
        service.end()
    run("reconcile", RECONCILE_PATIENCE_SECONDS="1")

    for recorded in pending.values():
        status, body = ask_again(recorded)
        assert status == 200
        if "requestId" in body:
            assert body["status"] == "SUCCESS"
            assert body | {"status": "PENDING", "userCouponId": None, "processedAt": None} == recorded.answer
        else:
            assert body["status"] == "EXPIRED"
            assert body | {"status": "PENDING"} == recorded.answer
    assert Order.objects.get(user_id=9).status == "PAID"
    assert UserCoupon.objects.get(user_id=9, coupon__coupon_type="GATE").status == "USED"
    assert UserCoupon.objects.get(user_id=10, coupon__coupon_type="GATE").status == "ISSUED"
    # The old version published its dead letters under another prefix, so those on the topics count as foreign.
    assert DeadLetter.objects.exclude(consumer_group="foreign").count() == dead_letters

    records = [record for topic in TOPICS for record in read_history(topic)]
    assert {record.event_id for record in records if record.event_id in requests} == requests - by_worker
    in_order = first_copies(records)
    waiting_by_key: dict[bytes, list[UUID]] = defaultdict(list)
    for key, event_id in waiting:
        waiting_by_key[key].append(event_id)
    for key, event_ids in waiting_by_key.items():
        if key != b"K":
            assert [event_id for event_id in in_order[key] if event_id in event_ids] == event_ids
    assert len(read_to_end("order-completed.DLT")) == len(waiting_by_key[b"K"]) == 4
