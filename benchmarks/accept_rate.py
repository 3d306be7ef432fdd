"""How much of an empty Django view's pace the door keeps, with token, validation, row and commit on top."""

from __future__ import annotations

from coupons.models import Coupon

from .interleave import Rates, take_turns
from .load import Plan
from .load_clients import CONNECTIONS, Client, requests_for
from .servers import Server, bare_web, folder, web

DOOR = "door"
PLAIN = "plain Django"
BARE = "without middleware"
_DOOR_REQUESTS = 4_000
_EMPTY_REQUESTS = 8_000


def measure(coupon: Coupon, *, rounds: int) -> Rates:
    """Answers per second of the door and of views that do nothing, each kept as busy as it can be."""
    with (
        folder() as place,
        web(place) as door,
        bare_web(place, middleware=True) as plain,
        bare_web(place, middleware=False) as bare,
    ):
        client = Client(place)

        def rate(server: Server, quantity: int) -> float:
            messages = requests_for(coupon, quantity, server.port)
            return quantity / client.send(Plan(server.port, CONNECTIONS, messages)).seconds

        return take_turns(
            {
                DOOR: lambda: rate(door, _DOOR_REQUESTS),
                PLAIN: lambda: rate(plain, _EMPTY_REQUESTS),
                BARE: lambda: rate(bare, _EMPTY_REQUESTS),
            },
            rounds=rounds,
        )
