"""The way of one order."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from common.bigint import MAX_BIGINT
from coupons.models import UserCoupon
from orders.models import Order, StoredOrder
from orders.order_trace import EventTrace, OrderTrace, order_trace

from .access import staff_page
from .layout import render_page
from .remedies import remedy_of
from .steps import Fact, Step, delivery_step, exact, given, publishing_step, row_address

_PERMISSIONS = ("orders.view_order", "kafka_bridge.view_outboxmessage")


@require_safe
@staff_page(*_PERMISSIONS)
def order_way(request: HttpRequest, order_id: int) -> HttpResponse:
    """Show the way of an order; 404 for an unknown id."""
    trace = order_trace(order_id) if order_id <= MAX_BIGINT else None
    if trace is None:
        return render_page(request, "ops/order_unknown.html", {"order_id": order_id, "query": ""}, status=404)
    context = {
        "trace": trace,
        "query": str(order_id),
        "steps": order_steps(trace),
        "remedy": None if trace.problem is None else remedy_of(trace.problem),
    }
    return render_page(request, "ops/order.html", context)


def order_steps(trace: OrderTrace) -> list[Step]:
    """Return the steps of an order: its states, its coupon's steps, its events and their effects."""
    steps = [_placed(trace.order), *_ledger(trace), *_payment(trace.order)]
    for event in trace.events:
        steps += _event(event)
    if trace.stored is not None:
        stored = trace.stored
        facts = given(
            Fact("row", str(stored.order_id), row_address(StoredOrder, stored.pk)),
            Fact("cancelled", exact(stored.cancelled_at)),
        )
        steps.append(Step("Copy of the data platform", "done", exact(stored.stored_at), facts=facts))
    return steps


def _placed(order: Order) -> Step:
    lines = order.lines.all()
    facts = given(
        Fact("order", str(order.id), row_address(Order, order.pk)),
        Fact("lines", str(len(lines))),
        Fact("total", f"{order.total_amount:,} won"),
        Fact("discount", f"{order.discount_amount:,} won" if order.discount_amount else ""),
        Fact("to pay", f"{order.pay_amount:,} won"),
        Fact("to be paid until", exact(order.expires_at)),
    )
    return Step("Placed", "done", exact(order.created_at), facts=facts)


def _ledger(trace: OrderTrace) -> list[Step]:
    coupon = trace.user_coupon
    address = "" if coupon is None else row_address(UserCoupon, coupon.pk)
    return [
        Step(
            f"Coupon {entry.step}",
            "done",
            exact(entry.created_at),
            facts=given(
                Fact(
                    "user coupon",
                    str(entry.user_coupon_id),
                    address if entry.user_coupon_id == getattr(coupon, "pk", 0) else "",
                ),
                Fact("cause", entry.cause),
            ),
        )
        for entry in trace.ledger
    ]


def _payment(order: Order) -> list[Step]:
    steps = []
    match order.status:
        case Order.Status.PENDING:
            steps.append(Step("Paid", "waiting", text="Not paid yet."))
        case Order.Status.PAYING:
            facts = given(Fact("asked until", exact(order.paying_until)), Fact("key at the provider", str(order.id)))
            steps.append(Step("Paid", "waiting", text="The payment provider is being asked.", facts=facts))
        case Order.Status.EXPIRED:
            steps.append(Step("Expired", "done", exact(order.expires_at), "It was not paid in time."))
    if order.paid_at is not None:
        steps.append(
            Step("Paid", "done", exact(order.paid_at), facts=given(Fact("key at the provider", str(order.id))))
        )
    if order.refund_requested_at is not None:
        key = Fact("key at the provider", f"{order.id}-refund")
        steps.append(Step("Refund", "waiting", exact(order.refund_requested_at), "It is not certain yet.", (key,)))
    if order.cancelled_at is not None:
        steps.append(Step("Cancelled", "done", exact(order.cancelled_at)))
    return steps


def _event(event: EventTrace) -> list[Step]:
    name = f"Event {event.event_type}"
    if event.message is None:
        text = "Its outbox row is not there: it was published, and deleted after its retention."
        first = Step(name, "done", text=text, facts=given(Fact("event", str(event.event_id))))
    else:
        first = publishing_step(name, event.message)
    return [first, *(delivery_step(f"Effect {effect.group}", effect) for effect in event.effects)]
