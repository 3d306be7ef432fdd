"""A paid order reaches every effect once, whatever process dies or service fails meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
from django.db.models import Sum

from devstack import wait_until
from kafka_bridge.models import DeadLetter, ProcessedEvent
from orders.models import Order, OrderMinute, Product, StoredOrder
from orders.ranking.selectors import best_sellers
from tests.processes.conftest import Web
from tests.support.provider import HANG, Answer, Call, Provider
from tests.support.service import Service, environment
from tests.support.shop import Shoppers
from tests.support.threads import in_another_session

pytestmark = pytest.mark.django_db(transaction=True)

EFFECTS = ("notification", "data-platform", "ranking", "monitoring")
SECONDS = 240.0


@pytest.fixture
def products(transactional_db: None) -> list[Product]:
    return Product.objects.bulk_create([Product(name=name, price=1000) for name in ("Mug", "Lamp", "Keyboard")])


@pytest.fixture
def service_with(topics: str, tmp_path: Path, redis_flushed: None) -> Iterator[Callable[..., Service]]:
    """``service_with(NAME="value")``: processes with these settings."""
    begun: list[Service] = []

    def begin(**settings: str) -> Service:
        begun.append(Service(tmp_path, environment(HTTP_TIMEOUT_SECONDS="1.0", **settings)))
        return begun[-1]

    yield begin
    for one in begun:
        one.end()


@pytest.fixture
def provider() -> Iterator[Callable[[], Provider]]:
    """``provider()``: a service outside that refuses every call until it is ``up``."""
    made: list[Provider] = []

    def make() -> Provider:
        made.append(Provider())
        return made[-1]

    yield make
    for one in made:
        one.close()


def start_effect(service: Service, group: str) -> None:
    service.start_command("consume_coupons", "--group", group, name=group)


def handled(group: str) -> int:
    return ProcessedEvent.objects.filter(consumer_group=group).count()


def when_handled(group: str, count: int) -> None:
    """Wait until a group has had so many events."""
    wait_until(lambda: handled(group) >= count, SECONDS, f"{group} has had {handled(group)} of {count} events", 0.05)


def kill_at(service: Service, group: str, counts: Sequence[int]) -> list[int]:
    """Kill a group's consumer whenever it has had so many events, and start it again; returns how many it had then."""
    had = []
    for count in counts:
        when_handled(group, count)
        service.processes[group].kill()
        had.append(handled(group))
        service.processes[group].start()
    return had


def completed_events() -> set[UUID]:
    return {event for event in Order.objects.values_list("completed_event_id", flat=True) if event is not None}


def assert_told_once(provider: Provider, event_ids: set[UUID]) -> None:
    """Every event had its effect at the provider, under its own key and none else, and said the same each time."""
    assert set(provider.effects) == {str(event_id) for event_id in event_ids}
    bodies = {(call.key, call.body) for call in provider.calls}
    assert len(bodies) == len(event_ids)


def fails_every_fifth_and_hangs_every_twentieth(call: Call) -> Answer:
    if call.number % 20 == 0:
        return HANG
    return 500 if call.number % 5 == 0 else 200


def test_each_order_is_told_stored_and_counted_once_while_every_effect_is_killed_and_alimtalk_is_unwell(
    web: Web,
    products: list[Product],
    service_with: Callable[..., Service],
    provider: Callable[[], Provider],
) -> None:
    orders = 2000
    alimtalk, platform = provider(), provider()
    alimtalk.answer = fails_every_fifth_and_hangs_every_twentieth
    alimtalk.up()
    platform.up()
    service = service_with(ALIMTALK_URL=alimtalk.url, ALIMTALK_KEY="key", DATA_PLATFORM_URL=platform.url)
    service.start("relay")
    for group in EFFECTS:
        start_effect(service, group)
    shoppers = Shoppers(web.port, products, orders=orders, clients=16)
    shoppers.start()
    killed = [in_another_session(partial(kill_at, service, group, (100, 400, 800))) for group in EFFECTS]
    for future in killed:
        assert max(future.result(SECONDS)) < orders
    paid = shoppers.finish()
    for group in EFFECTS:
        when_handled(group, orders)

    events = completed_events()
    assert len(events) == orders
    assert_told_once(alimtalk, events)
    assert_told_once(platform, events)
    assert len(alimtalk.calls) > orders * 6 // 5
    assert set(StoredOrder.objects.values_list("order_id", flat=True)) == {order.order_id for order in paid}
    sold = Counter[int]()
    for order in paid:
        sold.update({item.product_id: item.quantity for item in order.items})
    assert {row.product_id: row.quantity for row in best_sellers(days=2, limit=10)} == sold
    counted = OrderMinute.objects.aggregate(orders=Sum("completed"), won=Sum("amount"))
    assert counted == {"orders": orders, "won": sum(order.pay_amount for order in paid)}
    assert not DeadLetter.objects.exists()


def test_an_effect_that_is_down_holds_up_no_other_and_catches_up(
    web: Web,
    products: list[Product],
    service_with: Callable[..., Service],
    provider: Callable[[], Provider],
) -> None:
    orders = 200
    alimtalk = provider()
    service = service_with(ALIMTALK_URL=alimtalk.url, ALIMTALK_KEY="key")
    service.start("relay")
    for group in EFFECTS:
        start_effect(service, group)
    shoppers = Shoppers(web.port, products, orders=orders, clients=16)
    shoppers.start()
    shoppers.finish()
    for group in ("data-platform", "ranking", "monitoring"):
        when_handled(group, orders)
    assert handled("notification") == 0

    alimtalk.up()
    when_handled("notification", orders)
    assert_told_once(alimtalk, completed_events())
    assert not DeadLetter.objects.exists()
