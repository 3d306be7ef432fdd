"""One comparison of everything, and another one after it that tells what could not be mended."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from redis.exceptions import RedisError

from common.processes.lifecycle import StopFlag
from common.processes.outages import is_transient
from kafka_bridge.operating.alerts import end_alert, open_alert

from .. import metrics
from ..issuance.finish import GATE_ADMITTED_REFUSED
from ..reconciling.statuses import StatusCheck
from .findings import Findings
from .gate import GateCheck
from .outbox import OutboxCheck
from .stock import StockCheck

NOT_RECONCILED = "not-reconciled"
_RUNBOOK = "docs/operations.md#reconciling"
# Gates that were dropped have been loaded anew by then.
_REFUSALS_FORGOTTEN_SECONDS = 600.0


class Reconciled(NamedTuple):
    """``remaining``: what is wrong even now; without a repair all that was found.

    ``outage``: why not everything could be compared, or mended.
    """

    found: Findings
    remaining: Findings
    outage: Exception | None


class Reconciler:
    """Compares again and again; what it remembers between two times only spares work.

    ``patience``: seconds for which a request may be on its way from one place to the next.
    """

    def __init__(self, patience: float, *, once: bool, lag: Callable[[], int] | None = None) -> None:
        self._once = once
        self._gate = GateCheck(patience)
        self._outbox = OutboxCheck(patience, lag)
        self._stock = StockCheck(patience)
        self._statuses = StatusCheck()

    def run(self, stop: StopFlag, *, repair: bool) -> Reconciled:
        """Compare, and mend what is found if told so. A service that is away keeps only its own part from it."""
        found, compared = Findings(), set[int]()

        def check_gates() -> None:
            compared.update(self._gate.check(found, stop, repair=repair))
            self._gate.check_keys(found, whole=self._once, repair=repair)

        outage = _each(
            partial(self._stock.check, found, repair=repair),
            check_gates,
            partial(self._outbox.check, found, stop, repair=repair),
            partial(self._statuses.check, found, stop, whole=self._once, repair=repair),
        )
        for name, number in found.counts.items():
            metrics.RECONCILE_FOUND.labels(name).inc(number)
        if not repair:
            return Reconciled(found, found, outage)
        again = Findings()
        if found.counts and not stop:
            outage_again = _each(
                partial(self._stock.check, again, repair=False, again=True),
                partial(self._gate.check_again, compared, again, stop),
                partial(self._outbox.check, again, stop, repair=False),
                partial(self._statuses.check_again, again),
            )
            outage = outage or outage_again
        # What came up since has its turn the next time.
        remaining = again.both(found)
        if outage is None:
            self._alert(remaining)
        return Reconciled(found, remaining, outage)

    @staticmethod
    def _alert(remaining: Findings) -> None:
        if counts := remaining.counts:
            summary = "not to be mended: " + ", ".join(f"{number} {name}" for name, number in counts.items())
            open_alert(rule=NOT_RECONCILED, severity="critical", summary=summary, runbook=_RUNBOOK)
        else:
            end_alert(NOT_RECONCILED)
            end_alert(GATE_ADMITTED_REFUSED, open_for_seconds=_REFUSALS_FORGOTTEN_SECONDS)


def is_outage(error: BaseException) -> bool:
    """Whether a service is away."""
    return is_transient(error) or isinstance(error, RedisError)


def _each(*checks: Callable[[], None]) -> Exception | None:
    """Make every check; returns the first error of a service that is away."""
    outage = None
    for check in checks:
        try:
            check()
        except Exception as error:
            if not is_outage(error):
                raise
            outage = outage or error
    return outage
