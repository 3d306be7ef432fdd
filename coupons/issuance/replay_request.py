"""Replay the dead letter of a request: the failed request keeps its result, and a new one is decided."""

from __future__ import annotations

from uuid import UUID, uuid5

from django.db import connection
from msgspec.structs import replace

from kafka_bridge.errors import ReplayPostponed
from kafka_bridge.registry import ReplayedMessage

from .. import policy
from ..admission import ADMISSIONS, AdmissionRequest
from ..events import IssueRequested
from ..messages import IssueTask, read_issue_task
from ..models import Coupon, IssueRequest
from .issue import issue_many

# Requests of the coupon that are undecided now are decided within seconds.
_RETRY_SECONDS = 5.0
_PROMISED = "the free units of the coupon belong to undecided requests"

# Without a lock: ``issue_many`` decides under it.
_WOULD_GET_ONE = """
    SELECT total_quantity - issued - reserved > 0 AND NOT EXISTS (
        SELECT FROM coupons_usercoupon WHERE user_id = %s AND coupon_id = coupon.id
    )
    FROM coupons_coupon AS coupon WHERE id = %s
"""


def replay_request(replayed: ReplayedMessage) -> str | None:
    """Decide the request of a dead letter, in the transaction that closes the letter; returns a line about its result.

    If the request ended FAILED with ERROR, a new one is opened, ``replay_of`` the first, and decided at once. Its id
    follows from letter and attempt. Returns None if the request has another result, or was replayed before. Raises
    PoisonMessage, and ReplayPostponed while the free units belong to undecided requests.
    """
    task = read_issue_task(replayed.message)
    # Two letters of one request, replayed at once, wait for each other here: the second finds what the first opened.
    first = _locked(task.request_id)
    if first is not None:
        if (first.status, first.reason) != (policy.FAILED, policy.ERROR):
            return None
        if IssueRequest.objects.filter(replay_of=first.request_id).exists():
            return None
        new_id = replay_id(first.request_id, replayed.letter_id, replayed.attempt)
        task = replace(task, request_id=new_id, replay_of=first.request_id)
    refused = _refused(task)
    # The issuer knows only decided requests; the admission has promised the unit, or the user, to an undecided one.
    if refused is not None and _would_get_one(refused):
        raise ReplayPostponed(_PROMISED, _RETRY_SECONDS)
    issue_many([task])
    result = IssueRequest.objects.get(request_id=task.request_id)
    if refused is not None and result.status == policy.SUCCESS:
        # A unit came back since.
        raise ReplayPostponed(_PROMISED, _RETRY_SECONDS)
    return f"{result.reason or result.status}: request {result.request_id} of user {result.user_id}"


def replay_id(request_id: UUID, letter_id: int, attempt: int) -> UUID:
    """Return the id of the request that the replay of a dead letter opens; the same replay gets the same id."""
    return uuid5(request_id, f"replay {attempt} of dead letter {letter_id}")


def _locked(request_id: UUID) -> IssueRequest | None:
    return IssueRequest.objects.select_for_update(no_key=True).filter(request_id=request_id).first()


def _refused(task: IssueTask) -> AdmissionRequest | None:
    """Reserve a unit as the coupon's admission does for requests in bulk; returns the request if that refuses it.

    So the gate learns of the unit, and nothing is issued that it has promised to others.
    """
    coupon = _coupon(task.request)
    if coupon is None:
        return None
    candidate = AdmissionRequest(task.request_id, task.request.user_id, coupon.id, coupon.total_quantity)
    ADMISSIONS[coupon.admission].admit_bulk([candidate])
    return None if candidate.refusal is None else candidate


def _would_get_one(candidate: AdmissionRequest) -> bool:
    """Whether the issuer would give a unit now to a request that it knows nothing else about."""
    with connection.cursor() as cursor:
        cursor.execute(_WOULD_GET_ONE, [candidate.user_id, candidate.coupon_id])
        return bool(cursor.fetchone() == (True,))


def _coupon(request: IssueRequested) -> Coupon | None:
    if request.coupon_id is not None:
        return Coupon.objects.filter(pk=request.coupon_id).first()
    return Coupon.objects.filter(coupon_type=request.coupon_type).first()
