"""The tables of overload, disturbances, several issuers and memory."""

from __future__ import annotations

from rich.table import Table

from . import computing_site, issuers, locked_row, open_transaction, overload
from .computing_site import Burdens
from .interleave import Rates
from .load import BROKEN
from .locked_row import FREE, LOCKED, Locks
from .memory import Memory
from .open_transaction import OpenTransaction
from .overload import Durations, Overload
from .tables import RatioTable, milliseconds, new_table, times

_ANSWER_SECONDS = {202: 2.0, 503: 0.1}


def of_overload(measured: Overload) -> Table:
    """Return the table of the open loop beyond saturation."""
    table = new_table(f"Open loop at {overload.FACTOR} times saturation, {overload.SECONDS} s", "measured", "", "aim")
    table.add_row("saturation, closed loop", f"{measured.saturation:,.0f}/s")
    table.add_row("arrivals", f"{measured.rate:,.0f}/s")
    table.add_row("goodput (202)", f"{measured.goodput:,.0f}/s")
    table.add_row("goodput against saturation", times(measured.goodput / measured.saturation), ">= 0.8x")
    for status, count in sorted(measured.statuses.items()):
        name = "connection broke" if status == BROKEN else f"answers {status}"
        table.add_row(name, f"{count:,}", "0" if status == BROKEN else "")
    for status in (202, 503):
        for since, durations in (("sending", measured.from_sending), ("due time", measured.from_due)):
            if status in durations:
                aim = f"<= {1000 * _ANSWER_SECONDS[status]:,.0f} ms" if since == "sending" else ""
                table.add_row(f"{status} from {since}, p99 / max", _p99_and_max(durations[status]), aim)
    table.add_row("waited in the client, p99 / max", _p99_and_max(measured.delay))
    table.add_row("web's memory before", f"{measured.resident:,.0f} MB")
    table.add_row("web's memory, growth", f"{measured.grown:,.0f} MB")
    table.add_row("load client against the service", times(measured.client_share), "< 0.2x")
    table.caption = "\n".join((
        f"{overload.CONNECTIONS:,} connections; requests are due at a constant rate, answered or not",
        "waited in the client: between a request's due time and its sending; goodput: until the last answer",
    ))  # fmt: skip
    return table


def of_issuers(rates: Rates) -> Table:
    """Return the table of several issuers."""
    rows = RatioTable("Three coupons: medians of alternating rounds", "each of three processes has one of the coupons")
    rows.add_rate(f"issued by {issuers.SHARED}", rates, issuers.SHARED, issuers.ONE, issuers.ONE)
    return rows.table


def of_disturbances(locks: dict[str, Locks], burdens: Burdens) -> Table:
    """Return the table of what must not concern a request."""
    rows = RatioTable(
        "Disturbed: medians of alternating rounds",
        f"locked: another session holds a coupon's row, at most {locked_row.LOCK_SECONDS} s, and"
        f" {locked_row.LOCKED_RATE} requests a second ask for it; measured: requests for"
        f" {locked_row.OTHER_COUPONS} other coupons\n"
        f"computing site: GET {computing_site.PAGE} without end over {computing_site.CONNECTIONS} connections; foreign"
        " process: a loop in Python with the same CPU",
    )
    for admission, lock in locks.items():
        rows.add_rate(f"accepted, row locked, {admission}", lock.rates, LOCKED, "not locked", FREE)
        rows.add(
            f"answer p99, row locked, {admission}", milliseconds(lock.p99[LOCKED]),
            "not locked", milliseconds(lock.p99[FREE]), lock.p99[LOCKED] / lock.p99[FREE], aim="<= 1.5x",
        )  # fmt: skip
    site, foreign = computing_site.SITE, computing_site.FOREIGN
    rows.add_rate(f"accepted beside a {site}", burdens.rates, site, foreign, foreign, aim=">= 0.8x")
    rows.add(
        f"cores used by the {site}", f"{burdens.cores[site]:.2f}", foreign, f"{burdens.cores[foreign]:.2f}",
        burdens.cores[site] / burdens.cores[foreign],
    )  # fmt: skip
    return rows.table


def of_memory(measured: Memory) -> Table:
    """Return the table of the memory after many requests."""
    rows = RatioTable(
        "Memory of the web processes", "queue, gate and reserve by turns; half of the requests find the coupon sold out"
    )
    rows.add(
        f"after {measured.requests:,} requests", f"{measured.late:,.0f} MB",
        f"after {measured.early_requests:,}", f"{measured.early:,.0f} MB",
        measured.late / measured.early, aim="<= 1.1x",
    )  # fmt: skip
    return rows.table


def of_open_transaction(measured: OpenTransaction) -> Table:
    """Return the table of the relay beside an open transaction."""
    rows = RatioTable(
        f"Relay beside a transaction open for {measured.seconds} s",
        f"{open_transaction.ROWS_PER_SECOND:,} rows a second; the transaction has written a row; memory: the peak",
    )
    rows.add(
        "relay, last 20 s", f"{measured.beside:,.0f}/s", "before", f"{measured.free:,.0f}/s",
        measured.beside / measured.free, aim=">= 0.9x",
    )  # fmt: skip
    rows.add_figure("memory, growth", f"{measured.grown:,.0f} MB", aim="<= 50 MB")
    return rows.table


def _p99_and_max(durations: Durations) -> str:
    return f"{milliseconds(durations.p99)} / {milliseconds(durations.longest)}"
