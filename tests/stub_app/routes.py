"""What a project puts into its settings for the bridge."""

from __future__ import annotations

from kafka_bridge.routes import Route

NUMBER_DRAWN = "stub.number.drawn.v1"
BOOKING_REQUESTED = "stub.booking.requested.v1"
BOOKING_DECIDED = "stub.booking.decided.v1"

NUMBERS = "stub-numbers"
REQUESTS = "stub-booking-requests"
RESULTS = "stub-booking-results"

ROUTES = {
    NUMBER_DRAWN: Route(NUMBERS, key="key", partitions=3),
    BOOKING_REQUESTED: Route(REQUESTS, key="room", partitions=5),
    BOOKING_DECIDED: Route(RESULTS, key="room", partitions=5),
}
GROUPS = {"bookings": "stub-booking-group", "notices": "stub-notice-group"}
EVENT_KEY_FIELDS = {"room": "room", "key": "key"}
