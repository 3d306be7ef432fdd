"""The Prometheus metrics of coupons. Metric names are defined only here."""

from collections.abc import Iterator

from prometheus_client import Counter, Histogram

from kafka_bridge.operating.samples import CounterValue, labelled_values

ACCEPTED = Counter("issue_requests_accepted_total", "Requests accepted by the accept API or a bulk issue", ["source"])
REFUSED = Counter("issue_requests_refused_total", "Requests refused by the accept API, by problem code", ["code"])
# ``reason`` is empty for a success.
DECIDED = Counter("issue_requests_decided_total", "Requests that reached their result", ["status", "reason"])
# Part of the former: no message of theirs exists, so they have no dead letter.
ORPHANED_ERRORS = Counter("issue_requests_orphaned_total", "Orphaned requests that ended with ERROR")
TIME_TO_RESULT = Histogram(
    "issue_time_to_result_seconds",
    "From acceptance to decision",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
GATE_LOADED = Counter("issue_gate_loaded_total", "Gates loaded from PostgreSQL")
GATE_RELEASED = Counter("issue_gate_released_total", "Reservations released by the gate")
GATE_DROPPED = Counter("issue_gate_dropped_total", "Gates dropped because they had admitted more than the stock")
WORKER_PUSHED_AGAIN = Counter("issue_worker_pushed_again_total", "Undecided requests enqueued again in the Redis queue")
STATUS_NOT_CACHED = Counter("issue_status_not_cached_total", "Results not cached because Redis was too full")
# Each finding counts once per comparison that reports it; the label values are defined in ``reconciliation.findings``.
RECONCILE_FOUND = Counter("reconcile_found_total", "Findings of the reconciler", ["finding"])

# The problem code of a 503: the request was neither accepted nor refused by a rule.
_UNAVAILABLE = "unavailable"


def sampled_counters() -> Iterator[CounterValue]:
    """Return what is sampled of these metrics, see ``kafka_bridge.operating.samples``."""
    for _, value in labelled_values(ACCEPTED):
        yield CounterValue("accept", "accepted", value)
    for labels, value in labelled_values(REFUSED):
        yield CounterValue("accept", "unavailable" if labels["code"] == _UNAVAILABLE else "refused", value)
    for _, value in labelled_values(ORPHANED_ERRORS):
        yield CounterValue("issue", "errors", value)
