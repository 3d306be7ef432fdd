from __future__ import annotations

import getpass
import json
import os
import time
from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.core.management.base import CommandError

from common.api.errors import DomainError
from common.processes.lifecycle import StopFlag, check_database, drop_connection, first_line
from common.processes.outages import is_transient
from kafka_bridge.operating.worker_command import WorkerCommand
from kafka_bridge.outbox.writing import new_event_id

from ... import controls, selectors
from ...models import Coupon
from ...policy import is_coupon_type
from ...selectors import CouponView

_ACTIONS: dict[str, Callable[..., Coupon]] = {
    "open": controls.coupon_open,
    "pause": controls.coupon_pause,
    "resume": controls.coupon_resume,
    "close": controls.coupon_close,
    "restock": controls.coupon_restock,
}
_PAUSE = 0.5


class Command(WorkerCommand):
    help = (
        "Controls a coupon and prints its state afterwards as one line of JSON."
        " open: requests are taken from now on, whatever kept the coupon shut (an opening to come, an end that has"
        " passed, a pause)."
        " pause: no more are taken until resume; a coupon still to open stays shut when its time comes."
        " resume: ends a pause. close: no more are taken."
        " restock: adds --quantity pieces in any state, and opens nothing."
        " What is so already changes nothing and is no error; a closed coupon is neither paused nor resumed: open it."
        " What was accepted before is decided in any case. In effect within a second."
    )

    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("coupon_type", metavar="TYPE")
        parser.add_argument("action", choices=list(_ACTIONS), help="what to do")
        parser.add_argument("--quantity", type=int, metavar="N", help="pieces that a restock adds, 1 or more")
        parser.add_argument(
            "--id",
            type=UUID,
            metavar="UUID",
            help="the control's own id: the same again counts once; default: a new one",
        )
        parser.add_argument("--reason", default="", metavar="S", help="kept with the control")

    def work(self, stop: StopFlag, **options: Any) -> None:
        if not is_coupon_type(options["coupon_type"]):
            raise CommandError("TYPE must be 1 to 64 of A-Z a-z 0-9 _ -")
        values = {
            "id_or_type": options["coupon_type"],
            "actor": _shell_user(),
            "control_id": options["id"] or new_event_id(),
            "reason": options["reason"],
        }
        if options["action"] == "restock":
            if options["quantity"] is None:
                raise CommandError("restock needs --quantity")
            values["quantity"] = options["quantity"]
        elif options["quantity"] is not None:
            raise CommandError("--quantity goes with restock")
        try:
            view = _insist(options["action"], values, stop, options["wait"])
        except DomainError as error:
            raise CommandError(error.detail) from error
        self.stdout.write(json.dumps(_told(view)))


def _insist(action: str, values: dict[str, Any], stop: StopFlag, seconds: float) -> CouponView:
    """Carry out a control; while the database is away again and again, which its id makes harmless."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            coupon = _ACTIONS[action](**values)
            return selectors.coupon_view(selectors.coupons().get(id=coupon.id))
        except Exception as error:
            if not is_transient(error):
                raise
            drop_connection()
            if time.monotonic() >= deadline or stop.wait(_PAUSE):
                raise CommandError(
                    f"nobody knows whether it was done ({first_line(error)}): say the same again with"
                    f" --id {values['control_id']}, which counts once"
                ) from error


def _told(view: CouponView) -> dict[str, Any]:
    return {
        "couponId": view.coupon_id,
        "couponType": view.coupon_type,
        "state": view.state,
        "totalQuantity": view.total_quantity,
        "issuedQuantity": view.issued_quantity,
        "remaining": view.remaining,
    }


def _shell_user() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a number that has no name.
        name = f"uid {os.getuid()}"
    return f"{name} at the shell"
