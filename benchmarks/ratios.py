"""The table of ratios: issue, relay, accept API and latency."""

from __future__ import annotations

from collections.abc import Collection

from rich.table import Table

from . import accept_rate, issuing, latency, relaying
from .database_pair import UNITS, Side, sides
from .interleave import Prepare, alternate
from .load_clients import CONNECTIONS
from .sale import new_coupon
from .tables import RatioTable, milliseconds

PARTS = frozenset(("issue", "relay", "accept", "latency"))
_CAPTION = "\n".join((
    "empty view: granian's WSGI with two processes around a Django view that answers a constant, no database;"
    f" plain Django: with the middleware that startproject writes; {CONNECTIONS} connections keep each busy",
    f"latency: from the moment a request was due, at {latency.SHARE:.0%} of what web, relay and issuer accept together;"
    " result: until the decision;",
    f"alone: {latency.ALONE_RATE:.0f} requests a second",
))  # fmt: skip


class Ratios:
    """Measures parts and collects their rows."""

    def __init__(self, database: str, *, rounds: int, old_rows: int) -> None:
        self._database = database
        self._rounds = rounds
        self._old_rows = old_rows
        self._rows = RatioTable("Medians of alternating rounds", _CAPTION)

    def measure(self, parts: Collection[str]) -> Table:
        """Measure those of ``parts`` that are ``PARTS``, and return their table."""
        if {"issue", "relay"} & set(parts):
            with sides(self._database, old_rows=self._old_rows) as opened:
                if "issue" in parts:
                    self._issue(opened)
                if "relay" in parts:
                    self._relay(opened)
        if "accept" in parts:
            self._accept_api()
        if "latency" in parts:
            self._latency()
        return self._rows.table

    def _issue(self, opened: list[Side]) -> None:
        turns: dict[str, Prepare] = {}
        for side in opened:
            for name, prepare in side.run(lambda: issuing.contestants(new_coupon(UNITS))).items():
                if name != issuing.ONE_BY_ONE or not side.condition:
                    turns[f"{name}{side.condition}"] = side.prepare(prepare)
        rates = alternate(turns, rounds=self._rounds)
        for size in issuing.BATCH_SIZES:
            self._rows.add_rate(f"issue by {size:,}", rates, str(size), "a transaction each", issuing.ONE_BY_ONE)
        for side in opened[1:]:
            for size in issuing.BATCH_SIZES:
                self._rows.add_cost(f"issue by {size:,}{side.condition}", rates, f"{size}{side.condition}", str(size))

    def _relay(self, opened: list[Side]) -> None:
        turns: dict[str, Prepare] = {}
        costs: list[tuple[str, relaying.DatabaseCost]] = []
        for side in opened:
            costs.append((side.condition, cost := relaying.DatabaseCost()))
            contestants = side.enter(relaying.contestants(side.run(lambda: new_coupon(UNITS)), cost))
            for name, prepare in contestants.items():
                if name != relaying.BARE or not side.condition:
                    turns[f"{name}{side.condition}"] = side.prepare(prepare)
        rates = alternate(turns, rounds=self._rounds)
        self._rows.add_rate("relay", rates, relaying.RELAY, "bare producer", relaying.BARE)
        for side in opened[1:]:
            self._rows.add_cost(f"relay{side.condition}", rates, f"{relaying.RELAY}{side.condition}", relaying.RELAY)
        for condition, cost in costs:
            if (seconds := cost.seconds_per_row) is not None:
                self._rows.add_figure(
                    f"PostgreSQL per published row{condition}", f"{1e6 * seconds:.1f} us", aim="<= 4 us"
                )

    def _accept_api(self) -> None:
        rates = accept_rate.measure(new_coupon(UNITS), rounds=self._rounds)
        self._rows.add_rate(
            "accept API", rates, accept_rate.ACCEPT_API, "empty view, plain Django", accept_rate.PLAIN, aim=">= 0.4"
        )
        self._rows.add_rate("accept API", rates, accept_rate.ACCEPT_API, "empty view, no middleware", accept_rate.BARE)

    def _latency(self) -> None:
        measured = latency.measure()
        self._rows.add(
            "constant arrivals", f"{measured.rate:,.0f}/s", "saturation", f"{measured.saturation:,.0f}/s",
            measured.rate / measured.saturation,
        )  # fmt: skip
        timed = {"answer": measured.answer, "result": measured.result, "result, alone": measured.result_alone}
        for name, percentiles in timed.items():
            for percent, seconds in percentiles.items():
                self._rows.add(
                    f"time to {name}, p{percent}", milliseconds(seconds), "p50", milliseconds(percentiles[50]),
                    seconds / percentiles[50], aim="<= 4x" if (name, percent) == ("answer", 99) else "",
                )  # fmt: skip
