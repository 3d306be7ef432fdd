"""Requests of new users, encoded before the clock starts and sent by a separate process."""

from __future__ import annotations

import sys
from datetime import timedelta
from itertools import count
from pathlib import Path

import msgspec

from coupons.models import Coupon
from couponsite.auth.tokens import issue_access_token
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

    def __init__(self, folder: Path, name: str = "load") -> None:
        """``name`` tells the files of clients in one folder apart."""
        self._folder = folder
        self._name = name

    def send(self, plan: Plan) -> Outcome:
        """Send the plan in a separate process. Raises AssertionError unless every answer was 202."""
        with self.start(plan) as sending:
            return self.outcome(sending)

    def start(self, plan: Plan) -> ManagedProcess:
        """Return the process that sends the plan, to be used as a context manager."""
        plan_path, self._result = self._folder / f"{self._name}.plan", self._folder / f"{self._name}.outcome"
        plan_path.write_bytes(msgspec.msgpack.encode(plan))
        argv = [sys.executable, "-m", "benchmarks.load", str(plan_path), str(self._result)]
        return ManagedProcess(
            self._name, argv, None, Path(__file__).resolve().parents[1], self._folder / f"{self._name}.log"
        )

    def outcome(self, sending: ManagedProcess, *statuses: int) -> Outcome:
        """Wait for ``sending`` and return its outcome.

        Raises AssertionError unless every answer had one of ``statuses``, by default 202.
        """
        if sending.wait(_SECONDS):
            raise AssertionError(f"the client failed:\n{sending.log_tail()}")
        outcome = msgspec.msgpack.decode(self._result.read_bytes(), type=Outcome)
        expected = set(statuses or (202,))
        if not set(outcome.statuses) <= expected:
            raise AssertionError(f"not every answer was one of {sorted(expected)}: {status_counts(outcome)}")
        return outcome
