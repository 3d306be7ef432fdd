from __future__ import annotations

import json
import time
from argparse import ArgumentParser
from typing import Any
from uuid import UUID

from django.core.management.base import CommandError

from common.api.errors import DomainError
from common.processes.lifecycle import StopFlag, check_database, drop_connection, first_line
from common.processes.outages import is_transient
from kafka_bridge.operating.worker_command import WorkerCommand, shell_user
from kafka_bridge.outbox.writing import new_event_id

from ... import schemas, selectors
from ...controls import Action, coupon_control
from ...policy import is_coupon_type

_RETRY_SECONDS = 0.5


class Command(WorkerCommand):
    help = (
        "Controls a coupon and prints its state afterwards as one line of JSON."
        " open: requests are accepted from now on; a pause, a future opening time or a past closing time no longer"
        " applies."
        " pause: no request is accepted until resume; a coupon that is not open yet stays paused at its opening time."
        " resume: ends a pause. close: no request is accepted."
        " restock: adds --quantity units in any state, and does not open the coupon."
        " A control that is already in effect changes nothing and is no error; a closed coupon cannot be paused or"
        " resumed: open it. Requests accepted before are decided in any case. Controls take effect within a second."
    )

    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("coupon_type", metavar="TYPE")
        parser.add_argument("action", choices=Action.values, help="what to do")
        parser.add_argument("--quantity", type=int, metavar="N", help="units that a restock adds, 1 or more")
        parser.add_argument(
            "--id",
            type=UUID,
            metavar="UUID",
            help="the control's id: a repeated id counts once; default: a new id",
        )
        parser.add_argument("--reason", default="", metavar="S", help="stored with the control")

    def work(self, stop: StopFlag, **options: Any) -> None:
        if not is_coupon_type(options["coupon_type"]):
            raise CommandError("TYPE must be 1 to 64 of A-Z a-z 0-9 _ -")
        values = {
            "action": Action(options["action"]),
            "id_or_type": options["coupon_type"],
            "actor": shell_user(),
            "control_id": options["id"] or new_event_id(),
            "reason": options["reason"],
        }
        if options["action"] == Action.RESTOCK:
            if options["quantity"] is None:
                raise CommandError("restock needs --quantity")
            values["quantity"] = options["quantity"]
        elif options["quantity"] is not None:
            raise CommandError("--quantity is only for restock")
        try:
            view = _apply(values, stop, options["wait"])
        except DomainError as error:
            raise CommandError(error.detail) from error
        self.stdout.write(json.dumps(_state(view)))


def _apply(values: dict[str, Any], stop: StopFlag, seconds: float) -> schemas.Coupon:
    """Apply a control; while the database is away retry for ``seconds``, which is idempotent by the control's id."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            coupon = coupon_control(**values)
            return selectors.coupon_view(selectors.coupons().get(id=coupon.id))
        except Exception as error:
            if not is_transient(error):
                raise
            drop_connection()
            if time.monotonic() >= deadline or stop.wait(_RETRY_SECONDS):
                raise CommandError(
                    f"connection lost, outcome unknown ({first_line(error)}): run the same command again with"
                    f" --id {values['control_id']}, it counts once"
                ) from error


def _state(view: schemas.Coupon) -> dict[str, Any]:
    return {
        "couponId": view.coupon_id,
        "couponType": view.coupon_type,
        "state": view.state,
        "totalQuantity": view.total_quantity,
        "issuedQuantity": view.issued_quantity,
        "remaining": view.remaining,
    }
