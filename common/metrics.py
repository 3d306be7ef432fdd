"""Metrics of calls to external providers."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

# The most calls a second that this process makes to a provider.
PACE = Gauge("provider_pace_calls_per_second", "Calls a second that a provider gets at most", ["provider"])
# A provider throttles with 429, or with 503 and Retry-After.
THROTTLED = Counter("provider_throttled_total", "Calls that a provider throttled", ["provider"])
