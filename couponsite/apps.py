from datetime import timedelta
from functools import partial
from typing import Any

import structlog
from django.apps import AppConfig
from django.conf import settings
from django.core.signals import request_started
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate

from common.postgres.connections import close_dead_connections


def _begin_request(**_signal: Any) -> None:
    structlog.contextvars.clear_contextvars()
    close_dead_connections()


class CouponsiteConfig(AppConfig):
    name = "couponsite"

    def ready(self) -> None:
        # Imported for their side effect: they register checks and schema extensions.
        from couponsite import checks, openapi  # noqa: F401
        from couponsite.admin.viewers import grant_views
        from couponsite.logging import configure_structlog
        from couponsite.stored_times import read_nearest_times
        from kafka_bridge.operating.housekeeping import HousekeepingTask, register_task
        from kafka_bridge.operating.row_pruning import prune_aged

        configure_structlog(debug=settings.DEBUG)
        request_started.connect(_begin_request, dispatch_uid="couponsite.begin_request")
        connection_created.connect(read_nearest_times, dispatch_uid="couponsite.read_nearest_times")
        post_migrate.connect(grant_views, dispatch_uid="couponsite.grant_views")
        prune_sessions = partial(prune_aged, "django_session", "expire_date", timedelta(0))
        register_task(HousekeepingTask("expired sessions", "SESSION_COOKIE_AGE", prune_sessions))
