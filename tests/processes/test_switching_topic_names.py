"""The names of seed 001 are changed for the default ones on a database in use: nothing is lost or decided twice."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from coupons import invariants
from coupons.models import Coupon, IssueRequest, Notification, UserCoupon
from devstack import wait_until
from kafka_bridge.client import delete_topics, ensure_topics, existing_topics
from kafka_bridge.models import OutboxMessage
from kafka_bridge.registry import prefixed
from tests.support.factories import CouponFactory
from tests.support.kafka import read_to_end
from tests.support.profiles import profile
from tests.support.published import published_rows, unpublished_rows
from tests.support.service import Service, environment

pytestmark = pytest.mark.django_db(transaction=True)

SECONDS = 90.0
REQUESTED = "coupon.issue.requested.v1"
FORMER, PRESENT, RESULTS = "coupon-issue-requests", "coupon-issue-request", "coupon-issue-response"
STOCK = 250


@dataclass
class Switch:
    """The service under the earlier and under the present names, and the coupon that is sold."""

    folder: Path
    earlier: Service
    present: Service
    coupon: Coupon
    users: list[int] = field(default_factory=list)

    def accept(self, service: Service, first: int, number: int) -> None:
        """Users that have not been in a batch yet, in one."""
        path = self.folder / f"users-{first}.csv"
        path.write_text("userId\n" + "".join(f"{user}\n" for user in range(first, first + number)))
        assert service.run("issue_batch", self.coupon.coupon_type, str(path), "--no-wait") == 0
        self.users += range(first, first + number)

    def stand_still(self) -> None:
        """Stop everything in the middle of a sale: requests are decided, on the topic, or only in the outbox."""
        relay = self.earlier.start("relay")
        issuer = self.earlier.start("issuer")
        self.accept(self.earlier, 1, 600)
        wait_until(IssueRequest.objects.exists, SECONDS, "nothing is decided")
        issuer.stop()
        wait_until(
            lambda: published_rows().filter(event_type=REQUESTED).count() == 600, SECONDS, "not all is published"
        )
        relay.stop()
        self.accept(self.earlier, 1001, 30)

    def when_all_is_decided(self) -> None:
        wait_until(lambda: IssueRequest.objects.count() == len(self.users), SECONDS, "not all is decided")
        wait_until(lambda: Notification.objects.count() == len(self.users), SECONDS, "not all users are notified")
        wait_until(lambda: not unpublished_rows().exists(), SECONDS, "not all is published")

    def assert_every_user_was_served_once(self) -> None:
        assert Counter(IssueRequest.objects.values_list("user_id", flat=True)) == Counter(self.users)
        assert Counter(Notification.objects.values_list("user_id", flat=True)) == Counter(self.users)
        assert UserCoupon.objects.count() == STOCK
        results = Counter(json.loads(item.value() or b"")["requestId"] for item in read_to_end(RESULTS))
        requests = IssueRequest.objects.values_list("request_id", flat=True)
        assert results == Counter(str(request_id) for request_id in requests)
        assert {name: lines for name, lines in invariants.violations() if lines} == {}


@pytest.fixture
def switch(transactional_db: None, redis_flushed: None, settings: Any, tmp_path: Path) -> Iterator[Switch]:
    settings.KAFKA_TOPIC_PREFIX = prefix = f"t{secrets.token_hex(4)}-"
    switch = Switch(
        tmp_path,
        Service(tmp_path / "earlier", environment(**profile("001"))),
        Service(tmp_path / "present", environment(KAFKA_FORMER_TOPICS=json.dumps({REQUESTED: [FORMER]}))),
        CouponFactory.create(total_quantity=STOCK),
    )
    assert switch.earlier.run("create_topics") == 0
    yield switch
    switch.earlier.end()
    switch.present.end()
    delete_topics([name for name in existing_topics() if name.startswith(prefix)])


def test_the_switch_is_refused_until_the_earlier_topics_are_drained_and_then_goes_on(switch: Switch) -> None:
    switch.stand_still()
    undecided = len(switch.users) - IssueRequest.objects.count()
    refused = switch.present.command("create_topics")
    assert refused.returncode == 1
    name = prefixed(FORMER)
    *lines, reason = [line for line in refused.stderr.splitlines() if not line.startswith("{")]
    assert lines == [
        f"{name}: 30 {REQUESTED} not published yet",
        f"{name}: {undecided} {REQUESTED} not decided yet",
    ]
    assert prefixed(PRESENT) not in existing_topics()

    # What the refusal says.
    for command in ("relay_outbox --until-idle", "consume_coupons --until-idle"):
        assert command in reason
        assert switch.earlier.run(*command.split()) == 0
    created = switch.present.command("create_topics")
    assert created.returncode == 0, created.stderr
    assert f"created {prefixed(PRESENT)}" in created.stdout
    switch.present.start("relay")
    switch.present.start_command("consume_coupons", name="consumers")
    switch.accept(switch.present, 2001, 20)
    switch.when_all_is_decided()
    switch.assert_every_user_was_served_once()
    assert Counter(IssueRequest.objects.values_list("topic", flat=True)) == {FORMER: 630, PRESENT: 20}


def test_without_draining_the_reconciler_moves_the_requests(switch: Switch, settings: Any) -> None:
    switch.stand_still()
    decided = IssueRequest.objects.count()
    # The present topics are there from earlier days, and the operator asks nobody.
    ensure_topics(settings.KAFKA_ROUTES)
    switch.present.start("relay")
    switch.present.start_command("consume_coupons", name="consumers")
    switch.present.start_command("reconcile", "--repair", "--every", "1", "--patience", "1", name="reconciler")
    switch.when_all_is_decided()
    switch.assert_every_user_was_served_once()
    assert Counter(IssueRequest.objects.values_list("topic", flat=True)) == {FORMER: decided, PRESENT: 630 - decided}
    assert OutboxMessage.objects.filter(event_type=REQUESTED, topic=PRESENT).count() == 630 - decided
    # Moved requests are on the earlier topic still, and done.
    done = switch.present.command("create_topics")
    assert done.returncode == 0, done.stderr
