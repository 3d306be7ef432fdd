"""Requests of new users, encoded before the clock starts and sent by a separate process."""

from __future__ import annotations

import sys
from datetime import timedelta
from itertools import count
from pathlib import Path

import msgspec

from coupons.models import Coupon
from couponsite.tokens import issue_access_token
from demo.load_client import encode_request
from devstack import ManagedProcess

from .load import Outcome, Plan, status_counts

CONNECTIONS = 64
_PATH = "/api/v1/coupons/issue-async"
_LIFETIME = timedelta(hours=1)
_SECONDS = 120.0

_users = count(2_000_000_000)


def requests_for(coupon: Coupon, quantity: int, port: int) -> list[bytes]:
    """Return ``quantity`` encoded requests for ``coupon``, each of a new user with a valid token."""
    body = {"couponType": coupon.coupon_type}
    return [
        encode_request(
            "POST",
            _PATH,
            port,
            {"authorization": f"Bearer {issue_access_token(next(_users), lifetime=_LIFETIME)}"},
            body,
        )
        for _ in range(quantity)
    ]


class Client:
    """Sends plans; its files are in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def send(self, plan: Plan) -> Outcome:
        """Send the plan in a separate process. Raises AssertionError unless every answer was 202."""
        with self.start(plan) as sending:
            return self.outcome(sending)

    def start(self, plan: Plan) -> ManagedProcess:
        """Return the process that sends the plan, to be used as a context manager."""
        plan_path, self._result = self._folder / "plan", self._folder / "outcome"
        plan_path.write_bytes(msgspec.msgpack.encode(plan))
        argv = [sys.executable, "-m", "benchmarks.load", str(plan_path), str(self._result)]
        return ManagedProcess("load", argv, None, Path(__file__).resolve().parents[1], self._folder / "load.log")

    def outcome(self, sending: ManagedProcess, status: int = 202) -> Outcome:
        """Wait for ``sending`` and return its outcome. Raises AssertionError unless every answer had ``status``."""
        if sending.wait(_SECONDS):
            raise AssertionError(f"the client failed:\n{sending.log_tail()}")
        outcome = msgspec.msgpack.decode(self._result.read_bytes(), type=Outcome)
        if set(outcome.statuses) != {status}:
            raise AssertionError(f"not every answer was {status}: {status_counts(outcome)}")
        return outcome
