"""The tables of the admissions and of the gate's decisions."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from . import admissions, gate_cost
from .admissions import Admissions
from .gate_cost import Cost
from .tables import new_table, times


def of_admissions(measured: Admissions) -> Table:
    """Return the table with a row per admission."""
    table = new_table(
        "Admissions; in brackets relative to the queue, alternately in one run", "", "accepted/s", "refused/s",
        "refused / accepted", *(f"result p{percent}, ms" for percent in measured.result[admissions.QUEUE]),
        "CPU s",
    )  # fmt: skip
    whole = {name: sum(used.values()) for name, used in measured.cpu.items()}
    for name, result in measured.result.items():
        own = [
            *(f"{rates[name]:,.0f} ({times(rates.ratio(name, admissions.QUEUE))})"
              for rates in (measured.accepted, measured.refused)),
            times(measured.refused[name] / measured.accepted[name]),
            *(f"{1000 * seconds:,.0f} ({times(seconds / measured.result[admissions.QUEUE][percent])})"
              for percent, seconds in result.items()),
            f"{whole[name]:.2f} ({times(whole[name] / whole[admissions.QUEUE])})",
        ]  # fmt: skip
        table.add_row(name, *own)
    parts = "; ".join(
        f"{name}: " + ", ".join(f"{kind} {seconds:.2f}" for kind, seconds in used.items())
        for name, used in measured.cpu.items()
    )
    table.caption = "\n".join((
        f"accepted: {admissions.USERS:,} users for as many units; refused: as many more, once sold out;"
        " the queue refuses them after a 202; aim at a sold-out gate: 4x as many refused as accepted",
        f"result: from acceptance to decision, at {measured.rate:,.0f} requests a second,"
        f" {admissions.RATE_SHARE:.0%} of what the slowest accepts",
        f"CPU s: seconds per 1,000 refused; {parts}",
    ))  # fmt: skip
    return table


def of_decisions(costs: Mapping[tuple[str, int], Cost]) -> Table:
    """Return the table of the gate's decisions."""
    single, many = gate_cost.BY
    table = new_table("Microseconds per decision of the gate", "", "one per call", f"{many} per call", "ratio")
    for what in (gate_cost.ADMITTED, gate_cost.REFUSED):
        one, shared = costs[what, single], costs[what, many]
        figures = (f"{cost.total:,.1f} / {cost.redis:,.1f}" for cost in (one, shared))
        table.add_row(what, *figures, f"{times(shared.total / one.total)} / {times(shared.redis / one.redis)}")
    table.caption = "as the caller measures it / spent by Redis on the script"
    return table
