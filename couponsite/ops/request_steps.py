"""The steps of one request, for its page."""

from __future__ import annotations

from uuid import UUID

from django.conf import settings
from django.urls import reverse

from common.postgres.clock import isoformat_z
from coupons import policy
from coupons.issuance.fail_orphaned import NO_TOPIC
from coupons.models import IssueRequest, Notification, UserCoupon
from coupons.request_trace import RequestTrace
from kafka_bridge.models import DeadLetter
from kafka_bridge.registry import prefixed

from .steps import Fact, Step, delivery_step, exact, given, letter_address, outbox_facts, publishing_step, row_address

_WHY = {
    policy.SOLD_OUT: "It got nothing: no unit was left at its turn.",
    policy.ALREADY_ISSUED: "It got nothing: its user had the coupon already, by an earlier request.",
    policy.NOT_OPEN: "It got nothing: it was made outside the coupon's window, and not accepted by this service.",
    policy.UNKNOWN_COUPON: "It got nothing: there is no such coupon.",
    policy.ERROR: "It got nothing: it could not be handled.",
}


def request_steps(trace: RequestTrace) -> list[Step]:
    """Return the steps of a request, in order; those that are still to come are waiting."""
    steps = [_accepted(trace), _reserved(trace), _carried(trace), _decided(trace)]
    if trace.result is not None:
        steps += [_result_event(trace), _notice(trace)]
    steps.append(_status(trace))
    return steps + [_dead_letter(letter) for letter in trace.letters]


def _accepted(trace: RequestTrace) -> Step:
    accepted, request, result = trace.accepted, trace.request, trace.result
    origin = "from an Idempotency-Key, or by a batch" if trace.has_key else ""
    if accepted is None:
        if result is None:
            return Step("Accepted", "failed", text="It was never written to the outbox.")
        requested = Fact("requested at", exact(result.requested_at))
        source = Fact("source", result.source)
        if result.topic == NO_TOPIC:
            text = "It was never written to the outbox: the reconciler found what was reserved for it, and ended it."
            return Step("Accepted", "failed", text=text, facts=given(requested, source))
        text = "Its outbox row is not there: deleted after its retention, or it came from another producer."
        facts = given(requested, source, Fact("id", origin), Fact("retention", f"{settings.OUTBOX_RETENTION_HOURS} h"))
        return Step("Accepted", "done", exact(result.requested_at), text, facts)
    facts = given(
        Fact("requested at", exact(request.requested_at) if request else ""),
        Fact("source", request.source if request else ""),
        Fact("admission", request.admission if request else ""),
        Fact("sequence", str(request.sequence) if request and request.sequence is not None else ""),
        Fact("id", origin),
        *outbox_facts(accepted),
    )
    text = "" if request else "Its body cannot be read."
    return Step("Accepted", "done", exact(accepted.created_at), text, facts)


def _reserved(trace: RequestTrace) -> Step:
    redis, reservation = trace.redis, trace.reservation
    entry = redis.gate_entry
    gate = ""
    if redis.error:
        gate = f"unknown, Redis does not answer: {redis.error}"
    elif redis.gate_is_loaded is False:
        # Coupons of other admissions have none.
        is_expected = trace.request is not None and trace.request.admission == "gate"
        gate = "not loaded" if is_expected else ""
    elif entry is not None and trace.is_in_gate:
        gate = f"sequence {entry.sequence or 'unknown'}, {'undecided' if entry.age_ms is not None else 'confirmed'}"
    elif entry is not None:
        gate = f"its user's unit belongs to {'request ' + str(entry.request_id) if entry.request_id else 'no request'}"
    elif redis.gate_is_loaded:
        gate = "no unit of its user"
    facts = given(Fact("gate", gate))
    if reservation is not None:
        unit = Fact("unit", "counted in the coupon's reserved" if reservation.admission == "reserve" else "of the gate")
        transport = Fact("transport", "Redis queue" if reservation.by_worker else "Kafka")
        return Step("Reserved", "done", exact(reservation.created_at), "", (unit, transport, *facts))
    if trace.request is not None and trace.request.admission == "queue":
        return Step(
            "Reserved", "skipped", text="The admission queue reserves nothing: the issuer decides.", facts=facts
        )
    if trace.result is not None:
        text = "Whatever was reserved for it became its coupon or was released with its decision."
        return Step("Reserved", "skipped", text=text, facts=facts)
    return Step("Reserved", "unknown", text="No reservation is there.", facts=facts)


def _carried(trace: RequestTrace) -> Step:
    result, accepted = trace.result, trace.accepted
    name = "Through the Redis queue" if trace.by_worker else "Published"
    if result is not None:
        if result.topic == NO_TOPIC:
            return Step(name, "skipped", text="It had no message.")
        facts = given(
            Fact("topic", prefixed(result.topic)),
            Fact("partition", str(result.partition)),
            Fact("offset", str(result.offset)),
        )
        if result.partition < 0:
            text = "The Redis queue carried it; the offset is the id of its outbox row."
            return Step("Through the Redis queue", "done", text=text, facts=facts)
        return Step(name, "done", exact(result.published_at), "", facts)
    if accepted is None:
        return Step(name, "unknown")
    if trace.by_worker:
        place = trace.redis.place
        facts = given(
            Fact("before it", "" if place is None or place.ahead is None else str(place.ahead)),
            Fact("in the queue", "" if place is None else str(place.length)),
            Fact("workers alive", "" if place is None else str(place.workers)),
        )
        return Step(name, "waiting", facts=facts)
    if accepted.is_published:
        text = "Its partition is that of its key; its offset is known once it is decided."
        return Step(name, "done", "", text, given(Fact("partition", str(accepted.partition))))
    return Step(name, "waiting", text="Not published yet.")


def _decided(trace: RequestTrace) -> Step:
    result = trace.result
    if result is None:
        return Step("Decided", "waiting", text="Undecided: its user reads PENDING.")
    coupon = trace.user_coupon
    facts = given(
        Fact("result", result.status, row_address(IssueRequest, result.request_id)),
        Fact("reason", result.reason or ""),
        _request_fact("replay of", result.replay_of),
        _request_fact("replayed as", trace.replayed_as),
        Fact("units left after it", "" if result.remaining is None else str(result.remaining)),
        Fact(
            "user coupon",
            "" if result.user_coupon_id is None else f"{result.user_coupon_id}, {coupon.status if coupon else 'gone'}",
            "" if coupon is None else row_address(UserCoupon, coupon.pk),
        ),
        _earlier(result),
    )
    text = _WHY.get(result.reason or "", "It got a coupon.")
    return Step("Decided", "done", exact(result.processed_at), text, facts)


def _request_fact(name: str, request_id: UUID | None) -> Fact:
    return Fact(name, "") if request_id is None else Fact(name, str(request_id), request_address(request_id))


def _earlier(result: IssueRequest) -> Fact | None:
    """Return the coupon that the user had already, which leads to the request that got it."""
    if result.reason != policy.ALREADY_ISSUED or result.coupon_id is None or result.user_id is None:
        return None
    had = UserCoupon.objects.filter(coupon_id=result.coupon_id, user_id=result.user_id).first()
    if had is None:
        return None
    return Fact("coupon it had", f"user coupon {had.pk}", reverse("ops:request-of-coupon", args=[had.pk]))


def _result_event(trace: RequestTrace) -> Step:
    if trace.result_event is None:
        text = (
            f"Not found among the rows of that moment: deleted after {settings.OUTBOX_RETENTION_HOURS} h, or the clock"
            " of the issuer was wrong."
        )
        return Step("Result event", "unknown", text=text)
    return publishing_step("Result event", trace.result_event)


def _notice(trace: RequestTrace) -> Step:
    if trace.notice is None:
        return Step("User notified", "unknown", text="Without the id of the result event the inbox cannot be searched.")
    stored = trace.notification
    fact = None
    if stored is not None:
        fact = Fact("stored notification", f"{stored.id}: {stored.template_code}", row_address(Notification, stored.pk))
    elif settings.ALIMTALK_URL:
        fact = Fact("sent by", "AlimTalk")
    return delivery_step("User notified", trace.notice, given(fact))


def _status(trace: RequestTrace) -> Step:
    name, redis = "Status in Redis", trace.redis
    if redis.error:
        return Step(name, "unknown", text=f"Redis does not answer ({redis.error}): PostgreSQL answers instead.")
    if redis.status is None:
        text = "Not cached: PostgreSQL answers." if trace.result is not None else "Only results are cached."
        return Step(name, "skipped", text=text)
    return Step(name, "done", text=f"Cached: {redis.status.status} {redis.status.reason or ''}".rstrip() + ".")


def _dead_letter(letter: DeadLetter) -> Step:
    facts = given(
        Fact("dead letter", str(letter.id), letter_address(letter)),
        Fact("group", letter.consumer_group),
        Fact("position", f"{prefixed(letter.topic)}[{letter.partition}]@{letter.offset}"),
        Fact("error", f"{letter.error_class}: {letter.error_message}"),
        Fact("replays", str(letter.replays or "")),
        Fact("last replay", letter.last_error if letter.closed_at is None else ""),
        Fact(letter.state, isoformat_z(letter.closed_at) if letter.closed_at else ""),
    )
    return Step("Dead letter", "failed", exact(letter.created_at), facts=facts)


def request_address(request_id: object) -> str:
    """Return the address of the page of a request."""
    return reverse("ops:request", args=[request_id])
