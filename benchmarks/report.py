"""The table: every line a ratio of two rates that were measured side by side."""

from __future__ import annotations

import logging
import os

from django.conf import settings
from rich.console import Console
from rich.table import Table

from coupons.events import ISSUE_SUCCEEDED
from coupons.models import Coupon

from . import history, issuing, relaying
from .machine import machine
from .scratch import forget_answers, scratch_database, scratch_topics


def report(*, rounds: int, old_rows: int) -> None:
    """Measure in a database and topics of its own and print the table; with ``old_rows`` once more on top of them."""
    # While debugging Django keeps the text of every query, which costs more than many a query.
    settings.DEBUG = False
    _write_log_lines_nowhere()
    table = _table()
    with scratch_database(), scratch_topics(ISSUE_SUCCEEDED):
        coupon = Coupon.objects.create(
            coupon_type="HOT", name="HOT", discount_type="PERCENT", discount_value=10, total_quantity=10**9
        )
        try:
            _measure(table, coupon, rounds=rounds, condition="")
            if old_rows:
                history.add(coupon, old_rows)
                _measure(table, coupon, rounds=rounds, condition=f" over {old_rows:,} old rows")
        finally:
            forget_answers()
        table.caption = machine()
    Console().print(table)


def _write_log_lines_nowhere() -> None:
    """The lines per request are part of the path and are made, but nobody wants to read them here."""
    nowhere = open(os.devnull, "w")  # noqa: SIM115 - open as long as the process
    for handler in logging.getLogger("coupons.requests").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(nowhere)


def _table() -> Table:
    table = Table(title="Medians of alternating rounds", title_justify="left", caption_justify="left")
    table.add_column("path")
    table.add_column("/s", justify="right")
    table.add_column("against")
    table.add_column("/s", justify="right")
    table.add_column("ratio", justify="right")
    return table


def _measure(table: Table, coupon: Coupon, *, rounds: int, condition: str) -> None:
    issued = issuing.measure(coupon, rounds=rounds)
    for size in issuing.BATCH_SIZES:
        _line(
            table, f"issue by {size:,}{condition}", issued[str(size)],
            "a transaction each", issued[issuing.ONE_BY_ONE], decimals=0,
        )  # fmt: skip
    relayed = relaying.measure(coupon, rounds=rounds)
    _line(
        table, f"relay{condition}", relayed[relaying.RELAY],
        "bare producer", relayed[relaying.BARE], decimals=2,
    )  # fmt: skip


def _line(table: Table, measured: str, rate: float, against: str, other: float, *, decimals: int) -> None:
    table.add_row(measured, f"{rate:,.0f}", against, f"{other:,.0f}", f"{rate / other:.{decimals}f}x")
