"""Throughput of the accept API, with token, validation, row and commit, relative to an empty Django view."""

from __future__ import annotations

from coupons.models import Coupon

from .interleave import Rates, take_turns
from .load import Plan
from .load_clients import CONNECTIONS, Client, requests_for
from .servers import Server, bare_web, folder, web

ACCEPT_API = "accept API"
PLAIN = "plain Django"
BARE = "without middleware"
_ACCEPT_REQUESTS = 4_000
_EMPTY_REQUESTS = 8_000


def measure(coupon: Coupon, *, rounds: int) -> Rates:
    """Return answers per second of the accept API and of empty views, each under a closed loop of connections."""
    with (
        folder() as directory,
        web(directory) as accept_api,
        bare_web(directory, middleware=True) as plain,
        bare_web(directory, middleware=False) as bare,
    ):
        client = Client(directory)

        def rate(server: Server, quantity: int) -> float:
            messages = requests_for(coupon, quantity, server.port)
            return quantity / client.send(Plan(server.port, CONNECTIONS, messages)).seconds

        return take_turns(
            {
                ACCEPT_API: lambda: rate(accept_api, _ACCEPT_REQUESTS),
                PLAIN: lambda: rate(plain, _EMPTY_REQUESTS),
                BARE: lambda: rate(bare, _EMPTY_REQUESTS),
            },
            rounds=rounds,
        )
