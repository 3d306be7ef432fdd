"""A stuck request is found on its page, which names one remedy; that remedy, run as it stands, mends it."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import psycopg2
import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import Client
from django_redis import get_redis_connection
from pytest_django import Settings
from uuid_utils.compat import uuid7

from coupons.admission.gate.store import GateStore
from coupons.issuance.accept import request_accept
from coupons.models import Coupon, IssueRequest, Reservation, RolloutChange
from devstack import wait_until
from kafka_bridge.models import OutboxHold, OutboxMessage
from orders.models import Order, Product
from orders.services.placing import OrderItemInput, order_create
from tests.processes.conftest import MOMENT_SECONDS, when_shards_are_held, when_waiting_for_a_lock
from tests.support.factories import CouponFactory
from tests.support.kafka import lose_topics
from tests.support.published import published_rows
from tests.support.service import Service, environment

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("redis_flushed")]


class Operator:
    """An operator who opens the page of a request and does what it says."""

    def __init__(self, client: Client, service: Service) -> None:
        self._client = client
        self._service = service

    def page(self, request_id: UUID, **query: int) -> Any:
        return self._client.get(f"/ops/requests/{request_id}", query)

    def order(self, order_id: int) -> Any:
        return self._client.get(f"/ops/orders/{order_id}")

    def cause(self, request_id: UUID, **query: int) -> str:
        """The cause that the page names, empty for none."""
        problem = self.page(request_id, **query).context["trace"].problem
        return "" if problem is None else str(problem.cause)

    def when(self, request_id: UUID, cause: str, **query: int) -> str:
        """Wait until the page names a cause; returns its HTML."""
        seen: list[str] = []

        def look() -> bool:
            seen.append(self.cause(request_id, **query))
            return seen[-1] == cause

        wait_until(look, MOMENT_SECONDS, f"the page does not say {cause!r}", 0.1)
        return str(self.page(request_id, **query).content.decode())

    def run(self, page: str) -> None:
        """Run the command of a page to its end, or in the background if it is a process."""
        command = shlex.split(_text(page, "command"))
        assert command[:2] == ["python", "manage.py"]
        if command[2] in ("create_topics", "reconcile"):
            assert self._service.run(*command[2:]) == 0
        else:
            self._service.start_command(*command[2:], name=command[-1])

    def execute(self, page: str) -> None:
        """Execute the statement of a page."""
        with connection.cursor() as cursor:
            cursor.execute(_text(page, "sql"))

    def release(self, page: str) -> None:
        """Release the only hold, on the page that ``page`` leads to."""
        assert 'href="/ops/holds"' in page
        (hold, _key), *others = self._client.get("/ops/holds").context["holds"]
        assert not others
        response = self._client.post("/ops/holds/release", {"hold": hold.pk, "reason": "corrected"})
        assert response.status_code == 303


def _text(page: str, element: str) -> str:
    found = re.search(rf'<code id="{element}">(.*?)</code>', page, re.DOTALL)
    assert found, f"the page has no {element}"
    return html.unescape(found[1])


@pytest.fixture
def operator(service: Service) -> Operator:
    client = Client()
    client.force_login(User.objects.create_superuser("olga"))
    return Operator(client, service)


def accept(coupon: Coupon, user_id: int = 1) -> UUID:
    return request_accept(id_or_type=coupon.id, user_id=user_id, caller_id=user_id).request_id


def is_decided(request_id: UUID) -> Callable[[], bool]:
    return IssueRequest.objects.filter(request_id=request_id).exists


def is_published(request_id: UUID) -> Callable[[], bool]:
    return published_rows().filter(event_id=request_id).exists


def when(condition: Callable[[], bool], complaint: str) -> None:
    wait_until(condition, MOMENT_SECONDS, complaint, 0.05)


def test_each_process_that_is_missing_is_named_until_the_user_is_notified(operator: Operator) -> None:
    request_id = accept(CouponFactory.create(total_quantity=1))
    operator.run(operator.when(request_id, "relay-down"))
    when(is_published(request_id), "the relay does not publish it")
    operator.run(operator.when(request_id, "group-down"))
    when(is_decided(request_id), "the issuer does not decide it")
    page = operator.when(request_id, "group-down")
    assert "--group results" in page
    operator.run(page)
    page = operator.when(request_id, "")
    assert "It got a coupon." in page
    steps = {step.name: step for step in operator.page(request_id).context["steps"]}
    assert {step.state for step in steps.values()} == {"done", "skipped"}
    assert steps["Accepted"].at <= steps["Published"].at <= steps["Decided"].at


def test_a_hold_is_released_a_missing_topic_created_and_what_it_had_lost_sent_again(
    operator: Operator, service: Service, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.RECONCILE_PATIENCE_SECONDS = 1
    monkeypatch.setenv("RECONCILE_PATIENCE_SECONDS", "1")
    coupon = CouponFactory.create()
    OutboxHold.objects.create(topic="coupon-issue-request", key=coupon.coupon_type.encode(), reason="wrong terms")
    lost = accept(coupon, 1)
    service.start("relay")
    operator.release(operator.when(lost, "held-by-operator"))
    when(is_published(lost), "the held row is not published")

    lose_topics("coupon-issue-request")
    late = accept(coupon, 2)
    operator.run(operator.when(late, "topic-missing"))
    when(is_published(late), "the row is not published on the new topic")

    service.start("issuer")
    when(is_decided(late), "what is on the new topic is not decided")
    operator.run(operator.when(lost, "lost"))
    when(is_decided(lost), "what the topic had lost is not decided")


def test_requests_of_the_redis_queue_need_a_worker(operator: Operator) -> None:
    RolloutChange.objects.create(flag=RolloutChange.ALL_COUPONS, percent=100)
    coupon = CouponFactory.create(admission="gate")
    queued, lost = accept(coupon, 1), accept(coupon, 2)
    get_redis_connection("default").lrem("{issue-worker}:list", 1, str(lost))
    pages = [operator.when(request_id, "worker-down") for request_id in (queued, lost)]
    operator.run(pages[0])
    when(is_decided(queued), "the worker does not decide it")
    when(is_decided(lost), "the worker does not find what the queue has lost")


def test_what_is_reserved_for_requests_that_were_never_written_is_released(operator: Operator) -> None:
    reserving = CouponFactory.create(admission="reserve", reserved=1)
    gated = CouponFactory.create(admission="gate", total_quantity=1)
    reserved, admitted = uuid7(), accept(gated)
    Reservation.objects.create(request_id=reserved, coupon=reserving, user_id=9, admission="reserve")
    Reservation.objects.update(created_at="2026-01-01T00:00:00Z")
    # As if its process had died between gate and commit, a minute and more ago.
    OutboxMessage.objects.filter(event_id=admitted).delete()
    Reservation.objects.filter(request_id=admitted).delete()
    pending = GateStore(gated.id).keys.pending
    get_redis_connection("default").zadd(pending, {"1": 1})

    of_gate = {"user": 1, "coupon": gated.id}
    operator.when(admitted, "gate-leaked", **of_gate)
    operator.run(operator.when(reserved, "reservation-leaked"))
    for request_id in (reserved, admitted):
        result = IssueRequest.objects.get(request_id=request_id)
        assert (result.status, result.reason) == ("FAILED", "ERROR")
    assert Coupon.objects.get(id=reserving.id).reserved == 0
    assert GateStore(gated.id).number_of_holders() == 0
    assert operator.cause(admitted) not in ("gate-leaked", "reservation-leaked")


def test_an_order_that_should_have_expired_needs_the_sweep(operator: Operator) -> None:
    product = Product.objects.create(name="Socks", price=1000)
    order_id = order_create(user_id=7, items=[OrderItemInput(product.id, 1)]).order_id
    Order.objects.update(expires_at="2026-01-01T00:00:00Z")
    page = operator.order(order_id)
    assert page.context["trace"].problem.cause == "sweep-down"
    operator.run(page.content.decode())
    when(Order.objects.filter(id=order_id, status="EXPIRED").exists, "the order does not expire")
    assert operator.order(order_id).context["trace"].problem is None


@pytest.fixture
def other_session(transactional_db: None) -> Iterator[Any]:
    """A session that is not ours, in a transaction."""
    session = psycopg2.connect(environment()["DATABASE_URL"])
    yield session
    session.close()


def test_a_locked_coupon_and_a_dead_letter(operator: Operator, service: Service, other_session: Any) -> None:
    coupon = CouponFactory.create()
    with other_session.cursor() as cursor:
        cursor.execute("SELECT FROM coupons_coupon WHERE id = %s FOR UPDATE", [coupon.id])
    service.start("relay")
    service.start("issuer")
    when_shards_are_held()
    locked = accept(coupon)
    when_waiting_for_a_lock("consume_coupons")
    operator.execute(operator.when(locked, "coupon-locked"))
    when(is_decided(locked), "the issuer does not go on")

    unreadable = accept_unreadable(coupon)
    page = operator.when(unreadable, "dead-letter")
    assert "/admin/kafka_bridge/deadletter/" in page
    assert "It got nothing: it could not be handled." in page


def accept_unreadable(coupon: Coupon) -> UUID:
    """Accept a request whose body nothing can read."""
    with transaction.atomic():
        request_id = accept(coupon, 2)
        OutboxMessage.objects.filter(event_id=request_id).update(payload=b"{")
    return request_id
