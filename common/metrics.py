"""Metrics of what every app stands on."""

from __future__ import annotations

from prometheus_client import (
    Counter,
    Gauge,
)

# How fast this process calls a provider at most, and how often the provider answered "slow down" (429, or 503 with
# Retry-After).
PACE = Gauge("provider_pace_calls_per_second", "Calls a second that a provider gets at most", ["provider"])


THROTTLED = Counter("provider_throttled_total", "Calls that a provider throttled", ["provider"])
