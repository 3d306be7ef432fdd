"""The processes of a document of origin, under its profile, and the ways to follow a message through them."""

from __future__ import annotations

import json
import os
import runpy
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from confluent_kafka.admin import AdminClient
from django.conf import settings
from django.db import connection
from django_redis import get_redis_connection

import couponsite.settings
from coupons.models import IssueRequest, UserCoupon
from couponsite.auth.tokens import issue_access_token
from demo.processes import wait_until_ready
from devstack import wait_until
from devstack.ports import free_port
from kafka_bridge.partitioner import partition_of
from kafka_bridge.registry import prefixed
from kafka_bridge.routes import topics_of
from orders.models import Order, Product
from tests.seeds.reading import Record, TopicReader, shares_of_members
from tests.support.kafka import committed_offsets
from tests.support.profiles import profile
from tests.support.provider import Provider, close_http_client
from tests.support.service import Service, environment, run_command

SECONDS = 60.0
# What of the settings says where messages are; the test reads the topics and groups by it.
_NAMES = ("KAFKA_ROUTES", "KAFKA_GROUPS", "KAFKA_REPLICATION_FACTOR")


class Reply(NamedTuple):
    status: int
    body: Any


class Document:
    """The running processes; ``service`` starts, kills and ends them."""

    def __init__(self, service: Service, port: int, reader: TopicReader) -> None:
        self.service = service
        self.reader = reader
        self._port = port

    def call(self, method: str, path: str, body: Any = None, *, user_id: int) -> Reply:
        """Call the HTTP door as a user."""
        client = HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            headers = {
                "Authorization": f"Bearer {issue_access_token(user_id)}",
                "Content-Type": "application/json",
            }
            client.request(method, path, None if body is None else json.dumps(body), headers)
            response = client.getresponse()
            return Reply(response.status, json.loads(response.read()))
        finally:
            client.close()

    def ask(self, path: str, body: Any = None, *, user_id: int) -> UUID:
        """Ask for a coupon, which must be accepted; returns the request's id."""
        status, answer = self.call("POST", path, body or {}, user_id=user_id)
        assert (status, answer["status"], answer["userId"]) == (202, "PENDING", user_id), answer
        return UUID(answer["requestId"])

    def pay(self, product: Product, *, user_id: int) -> Order:
        """Place an order of one piece and pay it; returns the paid order."""
        items = [{"productId": product.pk, "quantity": 1}]
        placed = self.call("POST", "/api/v1/orders", {"items": items}, user_id=user_id)
        assert placed.status == 201, placed
        order_id = placed.body["orderId"]
        paid = self.call("POST", f"/api/v1/orders/{order_id}/pay", {}, user_id=user_id)
        assert (paid.status, paid.body["status"]) == (200, "PAID"), paid
        return Order.objects.get(pk=order_id)

    def completed(self, topic: str, order: Order) -> Record:
        """Wait for the event of a paid order on a topic: its key is the order's id."""
        return self.published(topic, event_of(order), str(order.pk))

    def status(self, request_id: UUID, user_id: int) -> Any:
        """The status of a request as its user reads it."""
        answer = self.call("GET", f"/api/v1/issue-requests/{request_id}", user_id=user_id)
        assert answer.status == 200, answer
        return answer.body

    def published(self, topic: str, event_id: UUID, key: str) -> Record:
        """Wait for an event on a topic; it must have this key and be on the partition that Java finds by it."""
        record = self.reader.find(topic, lambda record: record.headers.get("ce_id") == str(event_id), f"{event_id}")
        self.assert_placed(record, key)
        return record

    def result(self, topic: str, request_id: UUID, key: str) -> Record:
        """Wait for the result event of a request, placed as ``published``."""

        def is_wanted(record: Record) -> bool:
            return bool(record.body) and record.body.get("requestId") == str(request_id)

        record = self.reader.find(topic, is_wanted, f"the result of {request_id}")
        self.assert_placed(record, key)
        return record

    def assert_placed(self, record: Record, key: str) -> None:
        """That a message has the key, and stands where murmur2 puts it."""
        routes = settings.KAFKA_ROUTES.values()
        partitions = {
            **{route.topic: route.partitions for route in routes},
            **{route.dead_letter_topic: route.dead_letter_partitions for route in routes},
        }
        assert (record.key, record.partition) == (key, partition_of(key.encode(), partitions[record.topic]))

    def decided(self, request_id: UUID) -> IssueRequest:
        """Wait for the terminal row of a request."""
        rows = IssueRequest.objects.filter(request_id=request_id)
        wait_until(rows.exists, SECONDS, f"{request_id} is not decided", 0.02)
        return rows.get()

    def when_committed(self, group_id: str, record: Record) -> None:
        """Wait until a group (its id without prefix) has committed its offset past a message."""
        wait_until(
            lambda: committed_offsets(prefixed(group_id), record.topic)[record.partition] > record.offset,
            SECONDS,
            f"{group_id} does not commit {record}",
        )

    def when_shared(self, group_id: str, shares: Sequence[int]) -> None:
        """Wait until each member of a group has so many partitions."""
        wait_until(
            lambda: shares_of_members(group_id) == list(shares),
            SECONDS,
            f"the members of {group_id} do not have {shares} partitions",
        )


def notices_of(system: Provider, order: Order) -> set[bytes]:
    """What a system outside was told of a paid order; a call that is repeated under its key counts once."""
    return {call.body for call in list(system.calls) if call.key == str(event_of(order))}


def event_of(order: Order) -> UUID:
    """The id of the event of a paid order."""
    assert order.completed_event_id is not None
    return order.completed_event_id


def coupons_of(user_id: int) -> list[int]:
    """The ids of the coupons that a user has."""
    return list(UserCoupon.objects.filter(user_id=user_id).values_list("coupon_id", flat=True))


def transaction_of(table: str, column: str, value: int | UUID) -> int:
    """The transaction that wrote a row last."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT xmin::text::bigint FROM {table} WHERE {column} = %s", [value])
        ((transaction_id,),) = cursor.fetchall()
    return int(transaction_id)


def declined(number: str, **changes: str) -> str:
    """Start a consumer under the profile of a document with a bad setting; returns the one line that it ends with."""
    ended = run_command("consume_coupons", env=environment(**{**profile(number), **changes}))
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert line.partition(":")[0] in changes
    return line


@contextmanager
def running(
    number: str, folder: Path, roles: Sequence[str], changes: Mapping[str, str] = {}, *, kafka: str = ""
) -> Iterator[Document]:
    """Start web and ``roles`` of the Procfile under the profile of a document; logs go to ``folder``.

    A role may have a number after a dash, where several of it run (``issuer-2``). ``changes`` are further settings,
    ``kafka`` brokers in place of the usual ones.
    The test's own settings have the names of the profile meanwhile. Tables and Redis must be empty.
    """
    port = free_port()
    own = profile(number)
    consumer = {"session.timeout.ms": 6000, **json.loads(own.pop("KAFKA_CONSUMER_CONFIG", "{}"))}
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(settings, "KAFKA_TOPIC_PREFIX", f"t{secrets.token_hex(4)}-")
        if kafka:
            patch.setattr(settings, "KAFKA_BOOTSTRAP_SERVERS", kafka)
        _take_names(patch, own)
        env = environment(
            **own, KAFKA_CONSUMER_CONFIG=json.dumps(consumer), PORT=str(port), HOST="127.0.0.1", **changes
        )
        service = Service(folder, env)
        stack.callback(_delete_topics)
        stack.callback(close_http_client)
        stack.callback(service.end)
        web = service.start("web")
        created = service.command("create_topics")
        assert created.returncode == 0, created.stderr
        for role in roles:
            service.start(role.partition("-")[0], name=role)
        reader = TopicReader(topics_of(settings.KAFKA_ROUTES))
        stack.callback(reader.close)
        wait_until_ready(web, port)
        yield Document(service, port, reader)


def _take_names(patch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    with pytest.MonkeyPatch.context() as environ:
        for name in _NAMES:
            environ.delenv(name, raising=False)
        for name, value in variables.items():
            environ.setitem(os.environ, name, value)
        read = runpy.run_path(str(couponsite.settings.__file__))
    # The stub app of the tests has groups of its own.
    patch.setattr(settings, "KAFKA_GROUPS", {**settings.KAFKA_GROUPS, **read["KAFKA_GROUPS"]})
    patch.setattr(settings, "KAFKA_ROUTES", read["KAFKA_ROUTES"])


def _delete_topics() -> None:
    admin = AdminClient({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS})
    names = [name for name in admin.list_topics(timeout=30).topics if name.startswith(settings.KAFKA_TOPIC_PREFIX)]
    for future in admin.delete_topics(names).values():
        future.result()


def redis_flush() -> None:
    """Empty the Redis database of this lane."""
    get_redis_connection("default").flushdb()
