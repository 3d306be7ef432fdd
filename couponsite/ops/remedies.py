"""What an operator does about each cause. Every command exists, and ends the problem when it is run as it stands."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from django.conf import settings
from django.urls import reverse

from coupons.consumer_groups import ISSUE
from coupons.request_trace import RequestCause
from kafka_bridge.operating.delivery import DeliveryCause, Problem
from orders.order_trace import OrderCause


class Remedy(NamedTuple):
    """``command``: for a shell; ``sql``: for psql; ``address`` and ``label``: a page. Each may be empty."""

    text: str
    command: str = ""
    sql: str = ""
    address: str = ""
    label: str = ""


_CONSUMER_HANGS = (
    "Send it SIGUSR1: it writes the stacks of its threads to its log. Then kill it; its partitions go to another"
    " consumer within seconds, so start one if none is left."
)
_SAME_SWEEP = "The process orders asks the payment provider again every ten seconds: look whether it answers."


def remedy_of(problem: Problem) -> Remedy:
    """Return what to do about ``problem``."""
    cause = problem.cause
    if isinstance(cause, DeliveryCause):
        return _of_delivery(cause, problem)
    if isinstance(cause, RequestCause):
        return _of_request(cause, problem)
    return _of_order(cause)


def _of_delivery(cause: DeliveryCause, problem: Problem) -> Remedy:
    group = problem.group
    match cause:
        case DeliveryCause.PAUSED:
            return _resume(group, problem.details.get("partition", ""))
        case DeliveryCause.RELAY_DOWN:
            return Remedy("Start a relay.", "python manage.py relay_outbox")
        case DeliveryCause.KAFKA_AWAY:
            return _page(
                "Bring the brokers back. The rows stay where they are, and the relay goes on by itself.", "alerts"
            )
        case DeliveryCause.OUTBOX_BEHIND:
            return _page("Wait: the relay sends the rows in order. Look whether the outbox shrinks.", "dashboard")
        case DeliveryCause.HELD_BY_OPERATOR:
            return _page("Release the hold; relays obey at once.", "holds")
        case DeliveryCause.TOPIC_MISSING:
            return Remedy("Create the topic; the relay tries once a second.", "python manage.py create_topics")
        case DeliveryCause.TOPIC_REFUSES:
            return _page("Correct what the error names; the relay tries once a second and goes on by itself.", "alerts")
        case DeliveryCause.HELD_FOR_KEY:
            return _page("Wait: its relay sends it within seconds, after the earlier rows of its key.", "holds")
        case DeliveryCause.SENT_AGAIN:
            return Remedy("Wait: its relay sends it within seconds.")
        case DeliveryCause.TOPIC_FORMER:
            return _send_where_it_belongs(problem)
        case DeliveryCause.GROUP_DOWN | DeliveryCause.PARTITION_FREE:
            return Remedy(
                "Start a consumer; it has its partitions within seconds.",
                f"python manage.py consume_coupons --group {group}",
            )
        case DeliveryCause.CONSUMER_HANGS:
            return Remedy(_CONSUMER_HANGS, f"kill -KILL {problem.details['pid']}")
        case DeliveryCause.RETRYING:
            return _page("Correct what it waits for: nothing is lost, and the partition goes on by itself.", "alerts")
        case DeliveryCause.BEHIND:
            return _page("Wait, or start more consumers of the group, up to one per partition.", "dashboard")
        case DeliveryCause.LOST:
            return _send_again(problem)
        case DeliveryCause.DEAD_LETTER:
            return Remedy("Nothing repeats it by itself. The dead letter has the error and the original bytes.")


def _send_again(problem: Problem) -> Remedy:
    message = problem.message
    if message is None or problem.group == ISSUE.name:
        return Remedy("Have it sent again, under the same id.", "python manage.py reconcile --repair")
    return Remedy(
        "Publish the topic again from this row on, under the same ids: what is handled already is passed over.",
        f"python manage.py republish_topic {message.topic} --after {message.row_id - 1} --reason lost",
    )


def _send_where_it_belongs(problem: Problem) -> Remedy:
    message = problem.message
    if message is None or problem.group == ISSUE.name:
        return Remedy(
            "Have it published where its type goes now, under the same id.", "python manage.py reconcile --repair"
        )
    return Remedy(
        f"Set KAFKA_FORMER_TOPICS, with {message.topic} for its type. Then publish the events of that topic where their"
        " types go now, under the same ids: what is handled already is passed over.",
        f"python manage.py republish_topic {message.topic} --after {message.row_id - 1} --reason switched",
    )


def _of_request(cause: RequestCause, problem: Problem) -> Remedy:
    reconcile = "python manage.py reconcile --repair"
    patience = f"{settings.RECONCILE_PATIENCE_SECONDS:g} s"
    match cause:
        case RequestCause.COUPON_LOCKED:
            return Remedy(
                "End the session that holds the row; its transaction is rolled back.",
                sql=f"SELECT pg_terminate_backend({problem.details['pid']});",
                address=reverse("ops:blocks"),
                label="Who blocks whom",
            )
        case RequestCause.RESERVATION_LEAKED | RequestCause.GATE_LEAKED:
            return Remedy(f"Once it is older than {patience}: end it as FAILED and release its unit.", reconcile)
        case RequestCause.RESERVATION_STALE:
            return Remedy(f"Once it is older than {patience}: release it.", reconcile)
        case RequestCause.WORKER_DOWN:
            return Remedy("Start an issue worker.", "python manage.py issue_worker")
        case RequestCause.QUEUE_WAITING:
            return Remedy("Wait, or start another issue worker.", "python manage.py issue_worker")
        case RequestCause.QUEUE_LOST:
            return Remedy(
                f"A worker without work finds it within 10 s. Once it is older than {patience}, this pushes it again:",
                reconcile,
            )
        case RequestCause.QUEUE_UNREADABLE:
            return Remedy(
                "Bring Redis back: workers find their requests in PostgreSQL. Keys of a wrong type are removed by:",
                reconcile,
            )


def _of_order(cause: StrEnum) -> Remedy:
    match cause:
        case OrderCause.SWEEP_DOWN:
            return Remedy("Start the process that sweeps the orders.", "python manage.py expire_orders --every 10")
        case OrderCause.PAYMENT_IN_DOUBT:
            return Remedy(f"{_SAME_SWEEP} No user is charged twice.")
        case OrderCause.REFUND_IN_DOUBT:
            return Remedy(f"{_SAME_SWEEP} No refund is paid twice.")
        case OrderCause.EXPIRY_LATE:
            return Remedy("Its line in the log of the process orders says why it cannot expire.")
    raise ValueError(f"no remedy for {cause!r}")


def _resume(name: str, partition: str) -> Remedy:
    only = f" --partition {partition}" if partition else ""
    return Remedy(
        "Resume it when its messages may be handled; every process obeys within two seconds.",
        f'python manage.py control_group {name} resume{only} --reason "the cause is gone"',
        address=reverse("ops:groups"),
        label="Groups",
    )


def _page(text: str, name: str) -> Remedy:
    return Remedy(text, address=reverse(f"ops:{name}"), label=name.capitalize())
