"""A project that knows nothing but the stub app: no event, topic or group of another app exists here."""

from __future__ import annotations

import pytest
from pytest_django import Settings

from tests.stub_app import routes


@pytest.fixture(autouse=True)
def _routes_of_the_stub_app(settings: Settings) -> None:
    settings.KAFKA_ROUTES = routes.ROUTES
    settings.KAFKA_GROUPS = routes.GROUPS
    settings.EVENT_KEY_FIELDS = routes.EVENT_KEY_FIELDS
    settings.EVENT_SOURCE = "/stub"
