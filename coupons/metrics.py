"""What Prometheus can ask about coupons; the names stand here and nowhere else."""

from prometheus_client import Counter, Histogram

ACCEPTED = Counter("issue_requests_accepted_total", "Requests that a door took", ["source"])
REFUSED = Counter("issue_requests_refused_total", "Requests that a door refused, by error code", ["code"])
# ``reason`` is empty for a success.
DECIDED = Counter("issue_requests_decided_total", "Requests that reached their result", ["status", "reason"])
TIME_TO_RESULT = Histogram(
    "issue_time_to_result_seconds",
    "From acceptance to decision",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
GATE_LOADED = Counter("issue_gate_loaded_total", "Gates that were built from PostgreSQL")
GATE_RELEASED = Counter("issue_gate_released_total", "Reservations that the gate gave back")
GATE_DROPPED = Counter("issue_gate_dropped_total", "Gates that had let in more than there was")
WORKER_PUSHED_AGAIN = Counter(
    "issue_worker_pushed_again_total", "Undecided requests pushed into the worker's list again"
)
STATUS_NOT_CACHED = Counter(
    "issue_status_not_cached_total", "Results that were not cached because Redis was too full of other things"
)
# Each thing once per comparison that finds it; the names are those of ``reconciling.findings``.
RECONCILE_FOUND = Counter("reconcile_found_total", "What a comparison with PostgreSQL found wrong", ["finding"])
