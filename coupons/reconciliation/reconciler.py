"""Compare everything and, after a repair, once more to report what is still wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from redis.exceptions import RedisError

from common.processes.lifecycle import StopFlag
from common.processes.outages import is_transient
from kafka_bridge.operating.alerts import alert_rule, clear_alert, open_alert

from .. import metrics
from ..issuance.finish import GATE_ADMITTED_REFUSED
from .findings import Findings
from .gate import GateCheck
from .outbox import OutboxCheck
from .statuses import StatusCheck
from .stock import StockCheck

NOT_RECONCILED = alert_rule("not-reconciled", "critical")
# Dropped gates are loaded again by then.
_REFUSAL_ALERT_SECONDS = 600.0


class Reconciled(NamedTuple):
    """The outcome of one run.

    ``remaining``: what is still wrong after the repair; without a repair, all of ``found``. ``outage``: the error that
    left the comparison or the repair incomplete, or None.
    """

    found: Findings
    remaining: Findings
    outage: Exception | None


class Check(Protocol):
    """A comparison that the reconciler makes in each run. Raises what ``is_outage`` knows."""

    def check(self, findings: Findings, stop: StopFlag, *, repair: bool) -> None: ...


class Reconciler:
    """Compares repeatedly. The state kept between two runs only saves work.

    ``patience``: seconds that a request may take between gate, outbox, topic and Redis queue. ``once``: read everything
    in one run. ``lag`` returns the issuer's lag in messages; by default Kafka is asked. ``others``: checks of what
    stands on coupons.
    """

    def __init__(
        self, patience: float, *, once: bool, lag: Callable[[], int] | None = None, others: Sequence[Check] = ()
    ) -> None:
        self._once = once
        self._others = others
        self._gate = GateCheck(patience)
        self._outbox = OutboxCheck(patience, lag)
        self._stock = StockCheck(patience)
        self._statuses = StatusCheck()

    def run(self, stop: StopFlag, *, repair: bool) -> Reconciled:
        """Compare everything and, with ``repair``, repair it. An outage of a service skips only its own checks."""
        found, compared = Findings(), set[int]()

        def check_gates() -> None:
            compared.update(self._gate.check(found, stop, repair=repair))
            self._gate.check_keys(found, whole=self._once, repair=repair)

        outage = _run_checks(
            partial(self._stock.check, found, repair=repair),
            check_gates,
            partial(self._outbox.check, found, stop, repair=repair),
            partial(self._statuses.check, found, stop, whole=self._once, repair=repair),
            *(partial(other.check, found, stop, repair=repair) for other in self._others),
        )
        for name, number in found.counts.items():
            metrics.RECONCILE_FOUND.labels(name).inc(number)
        if not repair:
            return Reconciled(found, found, outage)
        again = Findings()
        if found.counts and not stop:
            outage_again = _run_checks(
                partial(self._stock.check, again, repair=False, again=True),
                partial(self._gate.check, again, stop, repair=False, again=compared),
                partial(self._outbox.check, again, stop, repair=False),
                partial(self._statuses.check_again, again),
                *(partial(other.check, again, stop, repair=False) for other in self._others),
            )
            outage = outage or outage_again
        # New findings of the second comparison are left to the next run.
        remaining = again.intersection(found)
        if outage is None and not stop:
            self._alert(remaining)
        return Reconciled(found, remaining, outage)

    @staticmethod
    def _alert(remaining: Findings) -> None:
        if counts := remaining.counts:
            summary = "not repaired: " + ", ".join(f"{number} {name}" for name, number in counts.items())
            open_alert(NOT_RECONCILED, summary)
        else:
            clear_alert(NOT_RECONCILED)
            clear_alert(GATE_ADMITTED_REFUSED, open_for_seconds=_REFUSAL_ALERT_SECONDS)


def is_outage(error: BaseException) -> bool:
    """Return whether ``error`` means that PostgreSQL, Kafka or Redis is away."""
    return is_transient(error) or isinstance(error, RedisError)


def _run_checks(*checks: Callable[[], object]) -> Exception | None:
    """Run every check; return the first outage, or None. Other errors are raised."""
    outage = None
    for check in checks:
        try:
            check()
        except Exception as error:
            if not is_outage(error):
                raise
            outage = outage or error
    return outage
