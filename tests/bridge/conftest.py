"""A project that knows nothing but the stub app: no event, topic or group of another app exists here."""

from __future__ import annotations

import pytest
from confluent_kafka import Producer
from pytest_django import Settings

from kafka_bridge.models import SHARDS
from kafka_bridge.outbox import settled_mark
from kafka_bridge.relaying.leases import Leases
from kafka_bridge.relaying.positions import Positions
from tests.stub_app import routes
from tests.support.kafka import transactional_producer


@pytest.fixture(autouse=True)
def _routes_of_the_stub_app(settings: Settings) -> None:
    settings.KAFKA_ROUTES = routes.ROUTES
    settings.KAFKA_GROUPS = routes.GROUPS
    settings.EVENT_KEY_FIELDS = routes.EVENT_KEY_FIELDS
    settings.EVENT_SOURCE = "/stub"


@pytest.fixture
def every_relay_holds_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relays without leases, as a relay that hung while others took its shards: both publish whatever is there."""
    monkeypatch.setattr(Leases, "held", lambda self: list(range(SHARDS)))
    monkeypatch.setattr(Leases, "holds_all", property(lambda self: True))
    monkeypatch.setattr(Positions, "load", lambda self, shards: setattr(self, "_shards", shards))
    monkeypatch.setattr(Positions, "_save", lambda self, unsent, shards: None)
    monkeypatch.setattr(Positions, "check_session", lambda self, session: None)


@pytest.fixture
def observing_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass of a relay may move its settled mark."""
    monkeypatch.setattr(settled_mark, "_OBSERVE_SECONDS", 0.0)


@pytest.fixture
def renewing_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass of a relay renews its leases, and may claim or lose shards."""
    monkeypatch.setattr("kafka_bridge.relaying.leases._RENEW_SECONDS", 0.0)


@pytest.fixture
def others(topics: str) -> Producer:
    """A transactional producer of others that has begun a transaction."""
    producer = transactional_producer()
    producer.begin_transaction()
    return producer
