"""The table of the sale, with a column per number of connections."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table

from . import sale
from .sale import Sales
from .tables import new_table, times

# The most that a closed loop may cost of what it measures.
_CLIENT_AIM = "< 0.2x"
_CAPTION = "\n".join((
    f"{sale.USERS:,} users at once, from the first request to the last coupon, on web, site, relay, issuer,"
    f" {', '.join(sale.OTHERS)}; PostgreSQL, Redis, Kafka",
    "fresh: the first sale of processes that just started; all other rows: the second, warm sale of the same processes",
    "empty view: granian's WSGI with two processes around a Django view that answers a constant, no middleware, no"
    " database; the service idle",
    f"whole stack: {', '.join(sale.STACK)}; in all: with {', '.join(sale.OTHERS)}; until the last coupon, the client's"
    " left out",
))  # fmt: skip


def table(measured: dict[int, Sales]) -> Table:
    """Return the table of the sales by number of connections."""
    sales = list(measured.values())
    rows = new_table(
        "Sale with all processes running",
        "measured",
        *(f"{connections} connections" for connections in measured),
        "aim",
    )

    def add(name: str, figure: Callable[[Sales], str], aim: str = "") -> None:
        rows.add_row(name, *map(figure, sales), aim)

    add("sale, fresh processes", lambda sold: f"{sold.fresh:.1f} s")
    add("sale, warm", lambda sold: f"{sold.warm:.1f} s")
    add("fresh against warm", lambda sold: times(sold.fresh / sold.warm), "<= 1.1x")
    add("accepted", lambda sold: f"{sold.accepted:,.0f}/s")
    add("empty view, no middleware", lambda sold: f"{sold.empty:,.0f}/s")
    add("accepted against empty view", lambda sold: times(sold.ratio), "0.7x / 0.8x")
    for kind in sales[0].cpu:
        rows.add_row(f"CPU per 1,000 issued: {kind}", *(_per_thousand(sold.cpu[kind]) for sold in sales))
    add("CPU per 1,000 issued: whole stack", lambda sold: _per_thousand(_stack(sold)), "0.20 s / 0.17 s")
    add("CPU per 1,000 answers of the empty view", lambda sold: f"{1000 * sold.empty_cpu:.3f} s")
    add("whole stack against empty view", lambda sold: times(_stack(sold) / sale.USERS / sold.empty_cpu))
    add("CPU per 1,000 issued: in all", lambda sold: _per_thousand(sum(sold.cpu.values())))
    add("load client against in all", lambda sold: times(sold.client_cpu / sum(sold.cpu.values())), _CLIENT_AIM)
    add("load client against empty view", lambda sold: times(sold.empty_client_share), _CLIENT_AIM)
    rows.caption = _CAPTION
    return rows


def _stack(sold: Sales) -> float:
    return sum(used for kind, used in sold.cpu.items() if kind in sale.STACK)


def _per_thousand(used: float) -> str:
    return f"{1000 * used / sale.USERS:.3f} s"
