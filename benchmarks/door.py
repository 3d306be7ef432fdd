"""How much of a bare Django view's pace the door keeps, with token, validation, row and commit on top."""

from __future__ import annotations

from coupons.models import Coupon

from .crowds import CONNECTIONS, Client, requests_for
from .load import Plan
from .rounds import take_turns
from .servers import Server, bare_web, folder, web

DOOR = "door"
BARE = "bare view"
_DOOR_REQUESTS = 6_000
_BARE_REQUESTS = 12_000


def measure(coupon: Coupon, *, rounds: int) -> dict[str, float]:
    """Answers per second of the door and of the bare view, each kept as busy as it can be."""
    with folder() as place, web(place) as door, bare_web(place) as bare:
        client = Client(place)

        def rate(server: Server, quantity: int) -> float:
            messages = requests_for(coupon, quantity, server.port)
            return quantity / client.send(Plan(server.port, CONNECTIONS, messages)).seconds

        return take_turns(
            {DOOR: lambda: rate(door, _DOOR_REQUESTS), BARE: lambda: rate(bare, _BARE_REQUESTS)}, rounds=rounds
        )
