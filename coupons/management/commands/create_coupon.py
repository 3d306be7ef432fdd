from __future__ import annotations

import json
from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from django.core.management.base import CommandError
from django.utils.dateparse import parse_datetime

from kafka_bridge.errors import is_transient
from kafka_bridge.lifecycle import StopFlag, check_database, first_line
from kafka_bridge.management.worker import WorkerCommand, positive

from ...admission import ADMISSIONS
from ...errors import InvalidRequest
from ...models import Coupon
from ...policy import is_coupon_type
from ...services.creating import coupon_create


class Command(WorkerCommand):
    help = 'Creates a coupon and prints {"couponId", "couponType"}; the same again changes nothing.'

    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("coupon_type", metavar="TYPE", help="1 to 64 of A-Z a-z 0-9 _ -")
        parser.add_argument("--quantity", type=positive, required=True, metavar="N")
        parser.add_argument("--name", metavar="S", help="default: TYPE")
        parser.add_argument("--admission", choices=list(ADMISSIONS), default="queue")
        discount = parser.add_mutually_exclusive_group()
        discount.add_argument("--percent", type=positive, metavar="P", help="1 to 100; default 10")
        discount.add_argument("--fixed", type=positive, metavar="WON")
        parser.add_argument("--cap", type=positive, metavar="WON", help="the most a percentage takes off")
        parser.add_argument("--min-order", type=positive, metavar="WON", default=0)
        parser.add_argument("--opens-at", type=moment, metavar="T", help="ISO 8601 with zone; default: now")
        parser.add_argument("--closes-at", type=moment, metavar="T", help="ISO 8601 with zone; default: never")
        parser.add_argument("--valid-days", type=positive, metavar="N", help="default: never expires")
        parser.add_argument(
            "--refund-policy",
            choices=Coupon.RefundPolicy.values,
            default=Coupon.RefundPolicy.RETURN_TO_USER,
        )

    def work(self, stop: StopFlag, **options: Any) -> None:
        try:
            coupon, _ = coupon_create(**_values(options))
        except InvalidRequest as error:
            raise CommandError(error.detail) from error
        except Exception as error:
            if not is_transient(error):
                raise
            raise CommandError(f"nobody knows whether it was made ({first_line(error)}): say the same again") from error
        self.stdout.write(json.dumps({"couponId": coupon.id, "couponType": coupon.coupon_type}))


def moment(text: str) -> datetime:
    """An argparse type: an aware time in ISO 8601."""
    parsed = parse_datetime(text)
    if parsed is None or parsed.tzinfo is None:
        raise ValueError(text)
    return parsed


def _values(options: dict[str, Any]) -> dict[str, Any]:
    if not is_coupon_type(options["coupon_type"]):
        raise CommandError("TYPE must be 1 to 64 of A-Z a-z 0-9 _ -")
    if options["name"] is not None and not options["name"].isprintable():
        raise CommandError("--name must be printable characters")
    fixed, percent, cap = options["fixed"], options["percent"] or 10, options["cap"]
    if fixed and cap:
        raise CommandError("--cap goes with --percent")
    if not fixed and percent > 100:
        raise CommandError("--percent must be from 1 to 100")
    values = {
        "coupon_type": options["coupon_type"],
        "name": options["name"] or options["coupon_type"],
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
    # Left out unless given: the database's time of creation is the default, and never equals an earlier one.
    return values | ({"opens_at": options["opens_at"]} if options["opens_at"] else {})
