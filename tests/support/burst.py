"""A crowd that asks in the background, so that the test can break things meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence

from coupons.models import Coupon
from demo.load_client import Answer, Crowd
from demo.sale import bearer_tokens, make_asks

_ANSWER_SECONDS = 180.0


class Burst:
    """Many requests at once from a thread of its own; begins with ``start`` and must be ended with ``stop``."""

    def __init__(self, port: int, coupons: Sequence[Coupon], *, requests: int, users: int) -> None:
        """Every user wants one of ``coupons``; those that come round again ask for the same once more."""
        self.asks = make_asks(requests, users, coupons)
        self._crowd = Crowd(port, bearer_tokens(ask.user_id for ask in self.asks))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="burst", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def accepted(self) -> int:
        """How many requests were answered so far."""
        return len(self._crowd.answers)

    @property
    def retries(self) -> Counter[str]:
        """Why requests had to be sent again, see ``Connection.insist``."""
        return self._crowd.retries

    def finish(self, seconds: float = _ANSWER_SECONDS) -> list[Answer]:
        """Wait for the last answer and return all of them; fails the test when they do not come in time."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"{self.accepted} of {len(self.asks)} answered; {dict(self.retries)}"
        return self._crowd.answers

    def stop(self) -> None:
        """End it, whatever is still to be answered."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join()

    def _run(self) -> None:
        self._task = self._loop.create_task(self._crowd.ask_all(self.asks))
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        finally:
            self._loop.close()
