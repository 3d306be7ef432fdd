from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError
from django.db import transaction

from common.processes.lifecycle import StopFlag, check_database
from coupons.policy import LONGEST_NAME, name_refusal
from kafka_bridge.operating.audit import record_action
from kafka_bridge.operating.worker_command import WorkerCommand, shell_user, whole

from ...models import Product
from ...policy import MAX_WON


class Command(WorkerCommand):
    help = 'Creates a product and prints {"productId"}.'

    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("name", metavar="NAME", help=f"1 to {LONGEST_NAME} characters")
        parser.add_argument("--price", type=whole(1, MAX_WON), required=True, metavar="WON")

    def work(self, stop: StopFlag, **options: Any) -> None:
        # Stripped, as the admin form does it.
        name, price = options["name"].strip(), options["price"]
        if why := name_refusal(name):
            raise CommandError(f"NAME {why}")
        with transaction.atomic():
            product = Product.objects.create(name=name, price=price)
            record_action(
                actor=shell_user(), action="product.create", subject=f"product {product.id}",
                after={"name": name, "price": price},
            )  # fmt: skip
        self.stdout.write(json.dumps({"productId": product.id}))
