"""The consumer groups of this app, registered with the bridge."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from kafka_bridge.operating.group_pauses import PausableWorker, register_worker
from kafka_bridge.operating.samples import register_counters
from kafka_bridge.registry import (
    ConsumerGroup,
    on_broker_rejection,
    register_group,
    register_retention_guard,
    register_transport,
)

from . import metrics
from .issuance.fail_dead_lettered import fail_dead_lettered_requests
from .issuance.issue import issue_many
from .issuance.notify_results import describe_notice, notify_results, read_notice, record_result
from .issuance.replay_request import replay_request
from .messages import ISSUE_FAILED, ISSUE_REQUESTED, ISSUE_SUCCEEDED, is_counted, read_issue_task
from .models import IssueRequest
from .redis_queue import TRANSPORT
from .running_sales import sales_disturbed

ISSUE = ConsumerGroup(
    name="issue",
    event_types=(ISSUE_REQUESTED,),
    decode=read_issue_task,
    handle=issue_many,
    on_dead_letters=fail_dead_lettered_requests,
    is_counted=is_counted,
    preview_disturbs=sales_disturbed,
    replay=replay_request,
)
RESULTS = ConsumerGroup(
    name="results",
    event_types=(ISSUE_SUCCEEDED, ISSUE_FAILED),
    decode=read_notice,
    call=notify_results,
    handle=record_result,
    is_counted=is_counted,
    describe_call=describe_notice,
    inbox=True,
    # After a crash, up to this many notices are sent again.
    largest_batch=100,
)


def register() -> None:
    """Register groups, guards and counters with the bridge; called once, when the app is ready."""
    register_counters(metrics.sampled_counters)
    register_transport(TRANSPORT)
    register_worker(TRANSPORT, PausableWorker("the workers of the Redis queue", "worker"))
    register_group(ISSUE)
    register_group(RESULTS)
    on_broker_rejection(ISSUE_REQUESTED, fail_dead_lettered_requests, replay=replay_request)
    register_retention_guard(ISSUE_REQUESTED, undecided_requests)


def undecided_requests(request_ids: Collection[UUID]) -> set[UUID]:
    """Return those of ``request_ids`` that have no terminal row yet."""
    decided = IssueRequest.objects.filter(request_id__in=request_ids).values_list("request_id", flat=True)
    return set(request_ids) - set(decided)
