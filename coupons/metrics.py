"""The Prometheus metrics of coupons. Metric names are defined only here."""

from prometheus_client import Counter, Histogram

ACCEPTED = Counter("issue_requests_accepted_total", "Requests accepted by the accept API or a bulk issue", ["source"])
REFUSED = Counter("issue_requests_refused_total", "Requests refused by the accept API, by problem code", ["code"])
# ``reason`` is empty for a success.
DECIDED = Counter("issue_requests_decided_total", "Requests that reached their result", ["status", "reason"])
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
