"""What this app does with messages: its consumer groups, registered with the bridge."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from kafka_bridge.registry import ConsumerGroup, register_group, register_refusal, register_undecided

from .messages import ISSUE_FAILED, ISSUE_REQUESTED, ISSUE_SUCCEEDED, read_issue_task
from .models import IssueRequest
from .services.issuing import issue_many
from .services.rejecting import end_rejected
from .telling import keep, read_told, tell

ISSUE = ConsumerGroup(
    name="issue",
    event_types=(ISSUE_REQUESTED,),
    decode=read_issue_task,
    handle=issue_many,
    on_dead_letters=end_rejected,
)
RESULTS = ConsumerGroup(
    name="results",
    event_types=(ISSUE_SUCCEEDED, ISSUE_FAILED),
    decode=read_told,
    call=tell,
    handle=keep,
    inbox=True,
    # As many may be sent again after a crash.
    largest_batch=100,
)


def register() -> None:
    """Called once, when the app is ready."""
    register_group(ISSUE)
    register_group(RESULTS)
    register_refusal(ISSUE_REQUESTED, end_rejected)
    register_undecided(ISSUE_REQUESTED, undecided_requests)


def undecided_requests(request_ids: Collection[UUID]) -> set[UUID]:
    """Those of ``request_ids`` that have no terminal row yet."""
    decided = IssueRequest.objects.filter(request_id__in=request_ids).values_list("request_id", flat=True)
    return set(request_ids) - set(decided)
