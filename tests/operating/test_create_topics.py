"""The process of create_topics ends with 1 when a topic breaks a promise; tests/bridge has what it complains about."""

from io import StringIO
from subprocess import CompletedProcess

import pytest
from django.core.management import CommandError, call_command

from coupons.issuance.accept import request_accept
from coupons.models import Coupon, RolloutChange
from devstack import wait_until
from kafka_bridge.client import delete_topics, existing_topics
from kafka_bridge.models import OutboxMessage
from kafka_bridge.registry import prefixed
from tests.support.kafka import set_topic_config
from tests.support.service import environment, run_command

EVENTS = "order-completed"
DLT = "order-completed.DLT"


@pytest.mark.django_db
@pytest.mark.usefixtures("topics")
def test_the_command_ends_with_1_and_a_line_per_setting() -> None:
    set_topic_config(EVENTS, {"retention.ms": "1000", "cleanup.policy": "compact"})
    set_topic_config(DLT, {"max.message.bytes": "1000"})
    ended: CompletedProcess[str] = run_command("create_topics", env=environment())
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith(prefixed(""))]
    assert [line.split(" is ")[0] for line in lines] == [
        prefixed(f"{DLT}: max.message.bytes"),
        prefixed(f"{EVENTS}: cleanup.policy"),
        prefixed(f"{EVENTS}: retention.ms"),
    ]


@pytest.mark.django_db
@pytest.mark.usefixtures("topics")
def test_a_missing_topic_is_created_and_said_to_be_where_another_breaks_a_promise() -> None:
    set_topic_config(EVENTS, {"retention.ms": "1000"})
    delete_topics([prefixed(DLT)])
    wait_until(lambda: prefixed(DLT) not in existing_topics(), 10, "the topic is still there")
    out, errors = StringIO(), StringIO()
    with pytest.raises(CommandError, match="the missing topics were created, nothing else was changed"):
        call_command("create_topics", stdout=out, stderr=errors)
    assert out.getvalue() == f"created {prefixed(DLT)}\n"
    (line,) = errors.getvalue().splitlines()
    assert line.startswith(f"{prefixed(EVENTS)}: retention.ms is 1000")
    assert prefixed(DLT) in existing_topics()
    with pytest.raises(CommandError, match="; nothing was changed"):
        call_command("create_topics", stdout=StringIO(), stderr=StringIO())


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("topics", "redis_flushed")
def test_a_request_on_the_redis_queue_is_no_work_of_an_earlier_topic(gate_coupon: Coupon) -> None:
    RolloutChange.objects.create(flag=RolloutChange.ALL_COUPONS, percent=100)
    request_accept(id_or_type=gate_coupon.id, user_id=1, caller_id=1)
    assert OutboxMessage.objects.get().topic == "issue-worker"
    out = StringIO()
    call_command("create_topics", stdout=out)
    assert out.getvalue() == "all topics exist\n"
