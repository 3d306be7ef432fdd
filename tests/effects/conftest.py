from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from common import http_calls
from common.processes.lifecycle import StopFlag
from orders.models import Product
from orders.ranking.rebuild import ranking_rebuild as rebuild
from tests.support.orders import make_product
from tests.support.provider import Provider, close_http_client


@pytest.fixture(autouse=True)
def _short_pauses(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.CONSUMER_BACKOFF_SECONDS = 0.05
    settings.HTTP_TIMEOUT_SECONDS = 1.0
    monkeypatch.setattr(http_calls, "PAUSES", (0.05, 0.1))


@pytest.fixture
def closed_provider() -> Iterator[Provider]:
    """A service that takes no connection before its ``up``."""
    provider = Provider()
    yield provider
    provider.release()
    # Its connections end with the test, not when they are garbage-collected; and the next one may get the same port.
    close_http_client()
    http_calls._create_endpoint.cache_clear()
    provider.close()


@pytest.fixture
def provider(closed_provider: Provider) -> Provider:
    closed_provider.up()
    return closed_provider


@pytest.fixture
def alimtalk(provider: Provider, settings: Any) -> Provider:
    settings.ALIMTALK_URL = provider.url
    settings.ALIMTALK_KEY = "the-key"
    return provider


@pytest.fixture
def data_platform(provider: Provider, settings: Any) -> Provider:
    settings.DATA_PLATFORM_URL = provider.url
    return provider


@pytest.fixture
def monitoring_service(provider: Provider, settings: Any) -> Provider:
    settings.ORDER_MONITORING_URL = provider.url
    return provider


@pytest.fixture
def tea(transactional_db: None) -> Product:
    return make_product("Tea")


@pytest.fixture
def rice(transactional_db: None) -> Product:
    return make_product("Rice")


@pytest.fixture
def loaded(transactional_db: None, redis_flushed: None) -> None:
    """Redis has a complete ranking, of nothing."""
    rebuild(stop=StopFlag())
