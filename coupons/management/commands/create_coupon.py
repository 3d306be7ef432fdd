from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError
from datetime import datetime
from typing import Any

from django.core.management.base import CommandError
from django.utils.dateparse import parse_datetime

from common.api.errors import InvalidRequest
from common.bigint import MAX_BIGINT
from common.processes.lifecycle import StopFlag, check_database
from kafka_bridge.operating.worker_command import WorkerCommand, idempotent, shell_user, whole

from ...admission import ADMISSIONS
from ...controls import coupon_create
from ...models import Coupon
from ...policy import MOST_DISCOUNT_WON, MOST_VALID_DAYS, is_coupon_type, name_refusal, time_refusal


class Command(WorkerCommand):
    help = 'Creates a coupon and prints {"couponId", "couponType"}; a repeat with the same values changes nothing.'

    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("coupon_type", metavar="TYPE", help="1 to 64 of A-Z a-z 0-9 _ -")
        parser.add_argument("--quantity", type=whole(1, MAX_BIGINT), required=True, metavar="N")
        parser.add_argument("--name", metavar="S", help="default: TYPE")
        parser.add_argument("--admission", choices=list(ADMISSIONS), default="queue")
        discount = parser.add_mutually_exclusive_group()
        discount.add_argument("--percent", type=whole(1, 100), metavar="P", help="1 to 100; default 10")
        discount.add_argument("--fixed", type=whole(1, MOST_DISCOUNT_WON), metavar="WON")
        parser.add_argument(
            "--cap", type=whole(1, MOST_DISCOUNT_WON), metavar="WON", help="the most a percentage takes off"
        )
        parser.add_argument("--min-order", type=whole(0, MOST_DISCOUNT_WON), metavar="WON", default=0)
        parser.add_argument("--opens-at", type=moment, metavar="T", help="ISO 8601 with zone; default: now")
        parser.add_argument("--closes-at", type=moment, metavar="T", help="ISO 8601 with zone; default: never")
        parser.add_argument("--valid-days", type=whole(1, MOST_VALID_DAYS), metavar="N", help="default: never expires")
        parser.add_argument(
            "--refund-policy",
            choices=Coupon.RefundPolicy.values,
            default=Coupon.RefundPolicy.RETURN_TO_USER,
        )

    def work(self, stop: StopFlag, **options: Any) -> None:
        try:
            with idempotent():
                coupon, _ = coupon_create(actor=shell_user(), **_values(options))
        except InvalidRequest as error:
            raise CommandError(error.detail) from error
        self.stdout.write(json.dumps({"couponId": coupon.id, "couponType": coupon.coupon_type}))


def moment(text: str) -> datetime:
    """An argparse type: an aware time in ISO 8601."""
    try:
        parsed = parse_datetime(text)
    except ValueError:
        parsed = None
    if parsed is None or parsed.tzinfo is None:
        raise ArgumentTypeError(f"{text[:40]!r} is not ISO 8601 with a zone, write it like 2026-07-01T10:00:00+09:00")
    if why := time_refusal(parsed):
        raise ArgumentTypeError(f"{text[:40]!r} {why}")
    return parsed


def _values(options: dict[str, Any]) -> dict[str, Any]:
    if not is_coupon_type(options["coupon_type"]):
        raise CommandError("TYPE must be 1 to 64 of A-Z a-z 0-9 _ -")
    # Stripped, as in the admin.
    name = options["coupon_type"] if options["name"] is None else options["name"].strip()
    if why := name_refusal(name):
        raise CommandError(f"--name {why}")
    fixed, percent, cap = options["fixed"], options["percent"] or 10, options["cap"]
    if fixed and cap:
        raise CommandError("--cap needs --percent")
    values = {
        "coupon_type": options["coupon_type"],
        "name": name,
        "total_quantity": options["quantity"],
        "admission": options["admission"],
        "discount_type": Coupon.DiscountType.FIXED if fixed else Coupon.DiscountType.PERCENT,
        "discount_value": fixed or percent,
        "discount_cap": cap,
        "min_order_amount": options["min_order"],
        "closes_at": options["closes_at"],
        "valid_days": options["valid_days"],
        "refund_policy": options["refund_policy"],
    }
    # Left out unless given: the default is the database's time of creation, which differs with each call, so a repeat
    # would not equal the existing coupon.
    return values | ({"opens_at": options["opens_at"]} if options["opens_at"] else {})
