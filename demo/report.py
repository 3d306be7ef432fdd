"""Output of the demo: progress while it runs, tables at the end."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from django.db import connection
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from coupons.models import Coupon
from demo.orders import OrderOutcome
from demo.printing import print_table
from demo.sale import Outcome
from demo.sale import Progress as Report

_RESULTS = """
    SELECT status, coalesce(reason, ''), count(*) FROM coupons_issuerequest
    WHERE coupon_id = ANY(%s) GROUP BY status, reason
"""
_WAITED = """
    SELECT percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (
        ORDER BY extract(epoch FROM processed_at - requested_at)::float8
    ) FROM coupons_issuerequest WHERE coupon_id = ANY(%s)
"""


@contextmanager
def progress_bar(console: Console, title: str, total: int) -> Iterator[Report]:
    """Yield a function that shows progress: a bar on a terminal, otherwise a line per tenth."""
    if not console.is_terminal:
        yield _progress_lines(console, title, total)
        return
    columns = (TextColumn("{task.description:>22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)


def _progress_lines(console: Console, title: str, total: int) -> Report:
    shown = 0

    def report(done: int) -> None:
        nonlocal shown
        if (tenth := 10 * done // max(total, 1)) > shown:
            shown = tenth
            console.print(f"{title}: {done} of {total}")

    return report


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Print the tables of a sale."""
    print_table(console, _sale_table(outcome))
    print_table(console, _coupon_table(outcome.coupons))


def print_orders(console: Console, outcome: OrderOutcome) -> None:
    """Print the tables of the orders after the sale."""
    table = _two_columns("The orders")
    saved = sum(order.discount_amount for order in outcome.paid)
    for name, value in (
        ("paid", f"{len(outcome.paid)}"),
        ("with a coupon", f"{len(outcome.with_coupon)}"),
        ("cancelled after payment", f"{len(outcome.cancelled)}"),
        ("total paid", f"{sum(order.pay_amount for order in outcome.paid):,} won"),
        ("saved by coupons", f"{saved:,} won"),
        ("until all were paid", f"{outcome.paid_in:.1f} s"),
        ("until every effect had processed them", f"{outcome.processed_in:.1f} s"),
    ):
        table.add_row(name, value)
    print_table(console, table)
    ranking = Table("product", title="Best sellers today", title_justify="left")
    ranking.add_column("sold", justify="right")
    for row in outcome.best_sellers:
        ranking.add_row(row.name, f"{row.quantity}")
    print_table(console, ranking)


def _sale_table(outcome: Outcome) -> Table:
    ids = [coupon.id for coupon in outcome.coupons]
    with connection.cursor() as cursor:
        cursor.execute(_RESULTS, [ids])
        results = Counter({(status, reason): count for status, reason, count in cursor.fetchall()})
        cursor.execute(_WAITED, [ids])
        waited = cursor.fetchone()[0]
    accepted = sum(answer.status == 202 for answer in outcome.answers)
    known = {("SUCCESS", ""), ("FAILED", "SOLD_OUT"), ("FAILED", "ALREADY_ISSUED")}
    retries = ", ".join(f"{count} {what}" for what, count in sorted(outcome.retries.items()))
    table = _two_columns("The sale")
    for name, value in (
        ("requests answered", f"{len(outcome.answers)}"),
        ("accepted (202)", f"{accepted}"),
        ("refused by the accept API", f"{len(outcome.answers) - accepted}"),
        ("retried attempts", retries or "0"),
        ("issued", f"{results['SUCCESS', '']}"),
        ("sold out", f"{results['FAILED', 'SOLD_OUT']}"),
        ("duplicates", f"{results['FAILED', 'ALREADY_ISSUED']}"),
        ("failed for other reasons", f"{sum(count for key, count in results.items() if key not in known)}"),
        ("answer p50 / p95 / p99", _milliseconds(_percentiles([answer.latency for answer in outcome.answers]))),
        ("result p50 / p95 / p99", _milliseconds(waited or [])),
        ("requests per second", f"{len(outcome.answers) / outcome.answered_in:.0f}"),
        ("until all were answered", f"{outcome.answered_in:.1f} s"),
        ("until all had a result", f"{outcome.decided_in:.1f} s"),
    ):
        table.add_row(name, value)
    return table


def _two_columns(title: str) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(justify="left")
    table.add_column(justify="right")
    return table


def _coupon_table(coupons: Sequence[Coupon]) -> Table:
    table = Table("coupon", "name", title="The coupons", title_justify="left")
    table.add_column("issued / total", justify="right")
    for coupon in Coupon.objects.filter(id__in=[coupon.id for coupon in coupons]).order_by("id"):
        table.add_row(coupon.coupon_type, coupon.name, f"{coupon.issued} / {coupon.total_quantity}")
    return table


def _percentiles(values: Sequence[float]) -> Sequence[float]:
    if len(values) < 2:
        return values
    cuts = statistics.quantiles(values, n=100)
    return [cuts[49], cuts[94], cuts[98]]


def _milliseconds(seconds: Sequence[float]) -> str:
    return " / ".join(f"{1000 * value:.0f}" for value in seconds) + " ms"
