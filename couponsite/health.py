"""Probes and metrics, served before any other middleware: probes use the IP address, which ALLOWED_HOSTS may refuse."""

from __future__ import annotations

from collections.abc import Callable

from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from redis.exceptions import RedisError, ResponseError

from common.api.problems import problem
from common.postgres.connections import drop_connections
from common.redis_client import NotPrimary, redis_connection
from kafka_bridge import metrics
from kafka_bridge.outbox.holds import holds_anything

# Written by the readiness probe: a successful PING does not prove that writes succeed.
_PROBE_KEY = "readyz"

# A server that takes longer for an empty query is not ready.
_LONGEST_SECONDS = 2.0

GetResponse = Callable[[HttpRequest], HttpResponseBase]


def live(request: HttpRequest) -> HttpResponse:
    """Answer 200 while the process runs; checks no other service."""
    return JsonResponse({"status": "ok"})


def ready(request: HttpRequest) -> HttpResponse:
    """Answer 200 if PostgreSQL answers, else 503; Redis is only reported and Kafka not checked: both may be down.

    ``redis`` is ``ok``, ``read_only`` (it answers and refuses writes: a replica, full, or unable to save) or
    ``unavailable``. In each state, coupons with admission ``queue`` and ``reserve`` are served as usual. ``outbox`` is
    ``ok``, ``holding`` (rows of a topic or key are held) or ``unknown``.
    """
    postgresql = "ok" if _postgresql_answers() else "unavailable"
    outbox = _outbox_state() if postgresql == "ok" else "unknown"
    body = {"status": postgresql, "postgresql": postgresql, "redis": _redis_state(), "outbox": outbox}
    return JsonResponse(body, status=200 if postgresql == "ok" else 503)


def _postgresql_answers() -> bool:
    try:
        with connection.cursor() as cursor:
            connection.connection.longest_call_seconds = _LONGEST_SECONDS
            cursor.execute("SELECT 1")
    except DatabaseError:
        drop_connections()
        return False
    return True


def _outbox_state() -> str:
    try:
        return "holding" if holds_anything() else "ok"
    except DatabaseError:
        drop_connections()
        return "unknown"


def _redis_state() -> str:
    redis = redis_connection()
    try:
        redis.set(_PROBE_KEY, "", ex=60)
    except (ResponseError, NotPrimary):
        return "read_only"
    except RedisError:
        return "unavailable"
    return "ok"


def metrics_view(request: HttpRequest) -> HttpResponse:
    """Serve the metrics of all processes of the server in the text format of Prometheus."""
    return HttpResponse(metrics.exposition(), content_type=metrics.CONTENT_TYPE)


PROBES = {"/livez": live, "/readyz": ready, "/metrics": metrics_view}


def answer_probes(get_response: GetResponse) -> GetResponse:
    def middleware(request: HttpRequest) -> HttpResponseBase:
        probe = PROBES.get(request.path_info)
        if probe is None:
            return get_response(request)
        if request.method not in ("GET", "HEAD"):
            return problem(
                request, "method_not_allowed", f"Method {request.method} not allowed.", headers={"Allow": "GET, HEAD"}
            )
        response = probe(request)
        response["Content-Length"] = str(len(response.content))
        return response

    return middleware
