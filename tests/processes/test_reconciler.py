"""The reconciler beside real processes: a web process that hung between gate and insert, and services that go away."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction
from django_redis import get_redis_connection
from pytest_django import Settings

from coupons.admission.gate.store import GateStore
from coupons.issuance.accept import request_accept
from coupons.models import Coupon, IssueRequest, Reservation, UserCoupon
from devstack import Part, Stack, wait_until
from kafka_bridge.models import OutboxMessage, ProcessHeartbeat
from tests.processes.conftest import MOMENT_SECONDS, Web, when_waiting_for_a_lock
from tests.support.factories import CouponFactory
from tests.support.service import Service, environment, run_command
from tests.support.threads import in_another_session

pytestmark = pytest.mark.django_db(transaction=True)

Headers = Callable[..., dict[str, str]]


def redis() -> Any:
    return get_redis_connection("default")


def ask(port: int, coupon: Coupon, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    address = f"http://127.0.0.1:{port}/api/v1/coupons/{coupon.id}/issue-async"
    request = urllib.request.Request(address, b"{}", headers | {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=MOMENT_SECONDS) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def when(condition: Callable[[], Any], complaint: str) -> None:
    wait_until(lambda: bool(condition()), MOMENT_SECONDS, complaint, 0.05)


def open_in_gate(coupon: Coupon) -> int:
    return int(redis().zcount(GateStore(coupon.id).keys.pending, "-inf", "(inf"))


@pytest.fixture
def coupon(transactional_db: None, redis_flushed: None) -> Coupon:
    return CouponFactory.create(admission="gate", total_quantity=1)


@contextmanager
def stopped_between_gate_and_insert(
    web: Web, coupon: Coupon, headers: dict[str, str]
) -> Iterator[Future[tuple[int, Any]]]:
    """A request for the coupon whose web process is stopped there; it goes on at the end. Gives what is answered."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("LOCK TABLE coupons_reservation IN EXCLUSIVE MODE")
        answer = in_another_session(partial(ask, web.port, coupon, headers))
        when_waiting_for_a_lock("web")
        os.killpg(web.process.pid, signal.SIGSTOP)
    try:
        yield answer
    finally:
        os.killpg(web.process.pid, signal.SIGCONT)


def test_a_web_process_stopped_between_gate_and_insert_costs_nobody_anything(
    web: Web, service: Service, coupon: Coupon, token: Headers
) -> None:
    with stopped_between_gate_and_insert(web, coupon, token(1)) as stopped:
        assert open_in_gate(coupon) == 1
        age_gate(coupon)
        ended = run_command("reconcile", "--repair", "--patience", "30", env=environment())
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "gate-leaked: 1" in ended.stdout
        assert open_in_gate(coupon) == 0
        assert not OutboxMessage.objects.filter(event_type__contains="requested").exists()
    status, body = stopped.result(MOMENT_SECONDS)
    assert status == 202
    late = IssueRequest.objects.get(request_id=body["requestId"])
    assert (late.user_id, late.status, late.reason) == (1, "FAILED", "ERROR")

    # The piece is another's; the issuer leaves the answer as it is, and nothing of the late rows remains.
    assert ask(web.port, coupon, token(2))[0] == 202
    service.start("relay")
    service.start("issuer")
    when(lambda: IssueRequest.objects.filter(user_id=2).exists(), "the second user has no answer")
    when(lambda: not Reservation.objects.exists(), "the late reservation is still there")
    assert list(UserCoupon.objects.values_list("user_id", flat=True)) == [2]
    late.refresh_from_db()
    assert (late.status, late.reason) == ("FAILED", "ERROR")
    assert IssueRequest.objects.count() == 2
    ended = run_command("reconcile", env=environment())
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert run_command("reconcile", "--repair", env=environment()).returncode == 0


def test_who_asks_again_while_the_first_process_is_stopped_gets_at_most_one(
    web: Web, service: Service, coupon: Coupon, token: Headers
) -> None:
    with stopped_between_gate_and_insert(web, coupon, token(1)) as stopped:
        age_gate(coupon)
        assert run_command("reconcile", "--repair", "--patience", "30", env=environment()).returncode == 0
        again = in_another_session(partial(request_accept, id_or_type=coupon.id, user_id=1, caller_id=1))
        # The gate let the second in; it waits for what becomes of the first one's row.
        when(lambda: open_in_gate(coupon) == 1, "the second request is not let in")
    status, body = stopped.result(MOMENT_SECONDS)
    assert (status, IssueRequest.objects.get(request_id=body["requestId"]).status) == (202, "FAILED")
    assert type(again.exception(MOMENT_SECONDS)).__name__ == "AlreadyIssued"
    service.start("relay")
    service.start("issuer")
    when(lambda: not Reservation.objects.exists(), "the late reservation is still there")
    assert ask(web.port, coupon, token(1))[0] == 202
    when(lambda: UserCoupon.objects.filter(user_id=1).count() == 1, "the user has no coupon")
    assert list(IssueRequest.objects.order_by("processed_at").values_list("status", flat=True)) == ["FAILED", "SUCCESS"]


def age_gate(coupon: Coupon) -> None:
    """As if the process had been stopped for a minute."""
    names = GateStore(coupon.id).keys
    for user, at in redis().zrange(names.pending, 0, -1, withscores=True):
        redis().zadd(names.pending, {user: at - 60_000})


@pytest.fixture
def own_redis(tmp_path: Path, settings: Settings) -> Iterator[Part]:
    """A Redis that only this test uses."""
    environ = {"DATABASE_URL": "postgres://given", "KAFKA_BOOTSTRAP_SERVERS": settings.KAFKA_BOOTSTRAP_SERVERS}
    stack = Stack("reconciler", root=tmp_path, environ=environ, report=print)
    with stack.used() as addresses:
        settings.REDIS_URL = addresses.redis_url
        yield stack.part("redis")


def break_a_counter(coupon: Coupon) -> None:
    Coupon.objects.filter(id=coupon.id).update(reserved=1)


def is_mended(coupon: Coupon) -> bool:
    return Coupon.objects.get(id=coupon.id).reserved == 0


def test_the_process_mends_again_and_again_and_outlives_every_service(own_redis: Part, service: Service) -> None:
    coupon = CouponFactory.create(admission="gate")
    process = service.start("reconciler", "--every", "1", "--patience", "1")
    when(ProcessHeartbeat.objects.filter(role="reconciler").exists, "the reconciler has no heartbeat")
    assert "gate-" not in process.log_path.read_text()
    break_a_counter(coupon)
    when(lambda: is_mended(coupon), "the counter is not mended")
    when(lambda: "counter-reserved: 1" in process.log_path.read_text(), "nothing was logged")

    own_redis.kill()
    when(lambda: "not everything was compared" in process.log_path.read_text(), "no line says that Redis is away")
    break_a_counter(coupon)
    when(lambda: is_mended(coupon), "without Redis the counter is not mended")
    own_redis.start()

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'coupons reconcile'"
        )
    break_a_counter(coupon)
    when(lambda: is_mended(coupon), "after the connection was lost the counter is not mended")

    assert process.stop(20) == 0
    assert not ProcessHeartbeat.objects.filter(role="reconciler").exists()


def test_a_kafka_that_is_away_keeps_only_its_own_part_from_being_mended(transactional_db: None) -> None:
    coupon = CouponFactory.create()
    request_accept(id_or_type=coupon.id, user_id=1, caller_id=1)
    OutboxMessage.objects.update(published_at="2026-01-01T00:00:00Z", created_at="2026-01-01T00:00:00Z")
    break_a_counter(coupon)
    ended = run_command("reconcile", "--repair", env=environment(KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9"))
    assert (ended.returncode, is_mended(coupon)) == (1, True), ended.stdout
    assert "not everything could be compared" in ended.stderr
    assert "Traceback" not in ended.stderr
