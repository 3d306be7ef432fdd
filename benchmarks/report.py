"""The printed tables: every row is a ratio of two figures measured in the same run."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection
from contextlib import ExitStack

from django.conf import settings
from rich.console import Console
from rich.table import Table

from . import accept_rate, admissions, gate_cost, issuing, latency, relaying, sale
from .database_pair import UNITS, Side, sides
from .interleave import Prepare, Rates, alternate
from .load_clients import CONNECTIONS
from .machine import machine
from .sale import new_coupon
from .temporary import temporary_database, temporary_topics

# At most so many rounds of sales: each starts every process again.
_SALES = 2
_WIDTH = 120
_EXPLANATIONS = (
    "empty view: granian's WSGI with two processes around a Django view that answers a constant, no database;"
    f" plain Django: with the middleware that startproject writes; {CONNECTIONS} connections keep each busy",
    f"sale: {sale.USERS:,} users at once, from the first request to the last coupon; CPU: of a warm sale, the client's"
    " left out",
    f"latency: from the moment a request was due, at {latency.SHARE:.0%} of what web, relay and issuer accept together;"
    " result: until the decision",
)


class Report:
    """Measures parts by name and collects their table rows, in a temporary database and topics."""

    def __init__(self, database: str, *, rounds: int, old_rows: int) -> None:
        self._database = database
        self._rounds = rounds
        self._old_rows = old_rows
        self.tables: list[Table] = []
        self._lines = _table("Medians of alternating rounds", "measured", "", "against", "", "ratio", "aim")
        self._lines.columns[2].justify = "left"

    def measure(self, parts: Collection[str]) -> None:
        """Measure ``parts``."""
        if {"issue", "relay"} & set(parts):
            with sides(self._database, old_rows=self._old_rows) as opened:
                if "issue" in parts:
                    self._issue(opened)
                if "relay" in parts:
                    self._relay(opened)
        others: dict[str, Callable[[], None]] = {"door": self._accept_api, "sale": self._sale, "latency": self._latency}
        for name, measure in others.items():
            if name in parts:
                measure()
        if self._lines.rows:
            self._lines.caption = "\n".join(_EXPLANATIONS)
            self.tables.append(self._lines)
        if "admissions" in parts:
            self.tables += [self._admissions(), self._decisions()]

    def _issue(self, opened: list[Side]) -> None:
        turns: dict[str, Prepare] = {}
        for side in opened:
            for name, prepare in side.run(lambda: issuing.contestants(new_coupon(UNITS))).items():
                if name != issuing.ONE_BY_ONE or not side.condition:
                    turns[f"{name}{side.condition}"] = side.prepare(prepare)
        rates = alternate(turns, rounds=self._rounds)
        for size in issuing.BATCH_SIZES:
            self._rate(f"issue by {size:,}", rates, str(size), "a transaction each", issuing.ONE_BY_ONE)
        for side in opened[1:]:
            for size in issuing.BATCH_SIZES:
                self._cost(f"issue by {size:,}{side.condition}", rates, f"{size}{side.condition}", str(size))

    def _relay(self, opened: list[Side]) -> None:
        turns: dict[str, Prepare] = {}
        for side in opened:
            contestants = side.enter(relaying.contestants(side.run(lambda: new_coupon(UNITS))))
            for name, prepare in contestants.items():
                if name != relaying.BARE or not side.condition:
                    turns[f"{name}{side.condition}"] = side.prepare(prepare)
        rates = alternate(turns, rounds=self._rounds)
        self._rate("relay", rates, relaying.RELAY, "bare producer", relaying.BARE)
        for side in opened[1:]:
            self._cost(f"relay{side.condition}", rates, f"{relaying.RELAY}{side.condition}", relaying.RELAY)

    def _accept_api(self) -> None:
        rates = accept_rate.measure(new_coupon(UNITS), rounds=self._rounds)
        self._rate(
            "accept API", rates, accept_rate.ACCEPT_API, "empty view, plain Django", accept_rate.PLAIN, aim=">= 0.4"
        )
        self._rate("accept API", rates, accept_rate.ACCEPT_API, "empty view, no middleware", accept_rate.BARE)

    def _sale(self) -> None:
        sales = sale.measure(rounds=min(self._rounds, _SALES))
        self._line(
            "sale, fresh processes", f"{sales.fresh:.1f} s", "warm", f"{sales.warm:.1f} s", sales.fresh / sales.warm
        )
        whole = sum(sales.cpu.values())
        for kind, used in [*sales.cpu.items(), ("all", whole)]:
            per_thousand = 1000 * used / sale.USERS
            self._line(
                f"CPU per 1,000 issued: {kind}", f"{per_thousand:.3f} s", "all", f"{1000 * whole / sale.USERS:.3f} s",
                used / whole, aim="<= 0.3 s" if kind == "all" else "",
            )  # fmt: skip

    def _latency(self) -> None:
        measured = latency.measure()
        self._line(
            "constant arrivals", f"{measured.rate:,.0f}/s", "saturation", f"{measured.saturation:,.0f}/s",
            measured.rate / measured.saturation,
        )  # fmt: skip
        for name, percentiles in (("answer", measured.answer), ("result", measured.result)):
            for percent, seconds in percentiles.items():
                self._line(
                    f"time to {name}, p{percent}", f"{1000 * seconds:,.1f} ms",
                    "p50", f"{1000 * percentiles[50]:,.1f} ms", seconds / percentiles[50],
                )  # fmt: skip

    def _admissions(self) -> Table:
        measured = admissions.measure(rounds=self._rounds)
        table = _table(
            "Admissions; in brackets relative to the queue, alternately in one run", "", "accepted/s", "refused/s",
            *(f"p{percent} to result, ms" for percent in measured.result[admissions.QUEUE]), "CPU s per 1,000 refused",
        )  # fmt: skip
        whole = {name: sum(used.values()) for name, used in measured.cpu.items()}
        for name, result in measured.result.items():
            own = [
                *(f"{rates[name]:,.0f} ({_times(rates.ratio(name, admissions.QUEUE))})"
                  for rates in (measured.accepted, measured.refused)),
                *(f"{1000 * seconds:,.0f} ({_times(seconds / measured.result[admissions.QUEUE][percent])})"
                  for percent, seconds in result.items()),
                f"{whole[name]:.2f} ({_times(whole[name] / whole[admissions.QUEUE])})",
            ]  # fmt: skip
            table.add_row(name, *own)
        parts = "; ".join(
            f"{name}: " + ", ".join(f"{kind} {seconds:.2f}" for kind, seconds in used.items())
            for name, used in measured.cpu.items()
        )
        table.caption = "\n".join((
            f"accepted: {admissions.USERS:,} users for as many units; refused: as many more, once sold out;"
            " the queue refuses them after a 202",
            f"result: from acceptance to decision, at {measured.rate:,.0f} requests a second,"
            f" {admissions.RATE_SHARE:.0%} of what the slowest accepts",
            f"CPU seconds per 1,000 refused: {parts}",
        ))  # fmt: skip
        return table

    def _decisions(self) -> Table:
        costs = gate_cost.measure(rounds=self._rounds)
        single, many = gate_cost.BY
        table = _table(
            "Microseconds per decision of the gate", "", "one per call", f"{many} per call", "ratio",
        )  # fmt: skip
        for what in (gate_cost.ADMITTED, gate_cost.REFUSED):
            one, shared = costs[what, single], costs[what, many]
            figures = (f"{cost.total:,.1f} / {cost.redis:,.1f}" for cost in (one, shared))
            table.add_row(what, *figures, f"{_times(shared.total / one.total)} / {_times(shared.redis / one.redis)}")
        table.caption = "as the caller measures it / spent by Redis on the script"
        return table

    def _rate(self, measured: str, rates: Rates, name: str, against: str, other: str, *, aim: str = "") -> None:
        ratio = rates.ratio(name, other)
        self._line(measured, f"{rates[name]:,.0f}/s", against, f"{rates[other]:,.0f}/s", ratio, aim=aim)

    def _cost(self, measured: str, rates: Rates, name: str, other: str) -> None:
        """Add the factor by which an item takes longer than on empty tables."""
        ratio = rates.ratio(other, name)
        self._line(measured, f"{rates[name]:,.0f}/s", "empty tables", f"{rates[other]:,.0f}/s", ratio, aim="<= 1.2")

    def _line(self, measured: str, value: str, against: str, other: str, ratio: float, *, aim: str = "") -> None:
        self._lines.add_row(measured, value, against, other, _times(ratio), aim)


def _table(title: str, first: str, *others: str) -> Table:
    """Return a table with right-aligned figures in every column but the first."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _times(ratio: float) -> str:
    return f"{ratio:.{0 if ratio >= 20 else 2}f}x"


def report(parts: Collection[str], *, rounds: int, old_rows: int) -> None:
    """Measure ``parts`` in a temporary database and topics and print the tables."""
    # With DEBUG Django keeps the text of every query, which costs more than many queries do.
    settings.DEBUG = False
    _silence_request_log()
    busy = os.getloadavg()[0]
    with ExitStack() as stack:
        database = stack.enter_context(temporary_database())
        stack.enter_context(temporary_topics())
        results = Report(database, rounds=rounds, old_rows=old_rows)
        results.measure(parts)
        measured_on = f"{machine()}; load {busy:.1f} before"
    # Without a terminal rich assumes 80 columns and would wrap every row.
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    for table in results.tables:
        console.print(table)
    console.print(measured_on)


def _silence_request_log() -> None:
    """Write the log line per request to /dev/null: producing it is part of the measured path, its output is not."""
    sink = open(os.devnull, "w")  # noqa: SIM115 - stays open until the process ends
    for handler in logging.getLogger("coupons.requests").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sink)
    # A gate logs at INFO when it is loaded, and every coupon of a run has one.
    logging.getLogger("coupons.admission").setLevel(logging.WARNING)
