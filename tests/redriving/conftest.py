from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from common import http_calls
from tests.support.provider import Provider, close_http_client


@pytest.fixture
def alimtalk(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """The provider of notices, as a server on loopback."""
    monkeypatch.setattr(http_calls, "PAUSES", (0.05, 0.1))
    provider = Provider()
    provider.up()
    settings.ALIMTALK_URL, settings.ALIMTALK_KEY = provider.url, "the-key"
    yield provider
    provider.release()
    close_http_client()
    http_calls._create_endpoint.cache_clear()
    provider.close()
