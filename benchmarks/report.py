"""Measures the parts and prints their tables: every row has two figures of the same run, or their ratio."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection
from contextlib import ExitStack

from django.conf import settings
from rich.console import Console
from rich.table import Table

from . import (
    admissions,
    admissions_tables,
    computing_site,
    gate_cost,
    issuers,
    locked_row,
    memory,
    open_transaction,
    overload,
    sale,
    sale_table,
    stress_tables,
)
from .database_pair import UNITS
from .machine import machine
from .ratios import PARTS, Ratios
from .sale import new_coupon, service
from .temporary import mark_outbox_published, require_empty_redis, temporary_database, temporary_topics

# At most so many rounds of sales: each starts every process again.
_SALES = 2
# Each round of the locked row takes ten seconds per admission, twice.
_DISTURBANCES = 2
_WIDTH = 120


def report(parts: Collection[str], *, rounds: int, old_rows: int, requests: int, seconds: int) -> None:
    """Measure ``parts`` in a temporary database and topics and print the tables.

    ``requests``: how many of them the part memory sends; ``seconds``: how long the transaction of the part transaction
    stays open.
    """
    # With DEBUG Django keeps the text of every query, which costs more than many queries do.
    settings.DEBUG = False
    _silence_request_log()
    busy = os.getloadavg()[0]
    if "sale" in parts:
        require_empty_redis()
    with ExitStack() as stack:
        database = stack.enter_context(temporary_database())
        stack.enter_context(temporary_topics())
        tables = _measure(parts, database, rounds=rounds, old_rows=old_rows, requests=requests, seconds=seconds)
        measured_on = f"{machine()}; load {busy:.1f} before"
    # Without a terminal rich assumes 80 columns and would wrap every row.
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    for table in tables:
        console.print(table)
    console.print(measured_on)


def _measure(
    parts: Collection[str], database: str, *, rounds: int, old_rows: int, requests: int, seconds: int
) -> list[Table]:
    tables = []
    if PARTS & set(parts):
        tables.append(Ratios(database, rounds=rounds, old_rows=old_rows).measure(parts))
    if "issuers" in parts:
        tables.append(stress_tables.of_issuers(issuers.measure(rounds=rounds)))
    if "sale" in parts:
        tables.append(sale_table.table(sale.measure(rounds=min(rounds, _SALES))))
    if "overload" in parts:
        tables.append(stress_tables.of_overload(overload.measure()))
    if "disturbed" in parts:
        mark_outbox_published()
        with service() as running:
            locks = locked_row.measure(running, rounds=min(rounds, _DISTURBANCES))
            burdens = computing_site.measure(running, rounds=min(rounds, _DISTURBANCES))
        tables.append(stress_tables.of_disturbances(locks, burdens))
    if "transaction" in parts:
        beside = open_transaction.measure(new_coupon(UNITS), database, seconds=seconds)
        tables.append(stress_tables.of_open_transaction(beside))
    if "memory" in parts:
        tables.append(stress_tables.of_memory(memory.measure(requests=requests)))
    if "admissions" in parts:
        tables.append(admissions_tables.of_admissions(admissions.measure(rounds=rounds)))
        tables.append(admissions_tables.of_decisions(gate_cost.measure(rounds=rounds)))
    return tables


def _silence_request_log() -> None:
    """Write the log line per request to /dev/null: producing it is part of the measured path, its output is not."""
    sink = open(os.devnull, "w")  # noqa: SIM115 - stays open until the process ends
    for handler in logging.getLogger("coupons.requests").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sink)
    # A gate logs at INFO when it is loaded and the audit when a coupon is created, and a run has many coupons.
    for name in ("coupons.admission", "kafka_bridge.operating.audit"):
        logging.getLogger(name).setLevel(logging.WARNING)
