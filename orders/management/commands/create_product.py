from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from kafka_bridge.lifecycle import StopFlag, check_database
from kafka_bridge.management.worker import WorkerCommand, positive

from ...models import Product
from ...policy import MOST_WON

_NAME_LENGTH = 200


class Command(WorkerCommand):
    help = 'Creates a product and prints {"productId"}.'

    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("name", metavar="NAME", help=f"1 to {_NAME_LENGTH} characters")
        parser.add_argument("--price", type=positive, required=True, metavar="WON")

    def work(self, stop: StopFlag, **options: Any) -> None:
        name, price = options["name"], options["price"]
        if not 1 <= len(name) <= _NAME_LENGTH or not name.strip() or not name.isprintable():
            raise CommandError(f"NAME must be 1 to {_NAME_LENGTH} printable characters")
        if price > MOST_WON:
            raise CommandError(f"--price must be at most {MOST_WON}")
        self.stdout.write(json.dumps({"productId": Product.objects.create(name=name, price=price).id}))
