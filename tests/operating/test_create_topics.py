"""The process of create_topics ends with 1 when a topic breaks a promise; tests/bridge has what it complains about."""

from io import StringIO
from subprocess import CompletedProcess

import pytest
from django.core.management import call_command

from coupons.issuance.accept import request_accept
from coupons.models import Coupon, RolloutChange
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


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("topics", "redis_flushed")
def test_a_request_on_the_redis_queue_is_no_work_of_an_earlier_topic(gate_coupon: Coupon) -> None:
    RolloutChange.objects.create(flag=RolloutChange.ALL_COUPONS, percent=100)
    request_accept(id_or_type=gate_coupon.id, user_id=1, caller_id=1)
    assert OutboxMessage.objects.get().topic == "issue-worker"
    out = StringIO()
    call_command("create_topics", stdout=out)
    assert out.getvalue() == "all topics exist\n"
