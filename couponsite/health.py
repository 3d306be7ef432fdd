"""Probes and metrics, answered before any other middleware: who asks knows our address, not our ALLOWED_HOSTS."""

from __future__ import annotations

from collections.abc import Callable

from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django_redis import get_redis_connection
from django_redis.exceptions import ConnectionInterrupted
from redis.exceptions import RedisError

from couponsite.connections import drop_connections
from couponsite.problems import problem
from kafka_bridge import metrics

GetResponse = Callable[[HttpRequest], HttpResponseBase]


def live(request: HttpRequest) -> HttpResponse:
    """200 while the process answers at all; asks nobody."""
    return JsonResponse({"status": "ok"})


def ready(request: HttpRequest) -> HttpResponse:
    """200 when PostgreSQL answers, else 503; Redis is only reported and Kafka not asked, they may be away."""
    postgresql, redis = _postgresql_answers(), _redis_answers()
    states = {True: "ok", False: "unavailable"}
    body = {"status": states[postgresql], "postgresql": states[postgresql], "redis": states[redis]}
    return JsonResponse(body, status=200 if postgresql else 503)


def _postgresql_answers() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        drop_connections()
        return False
    return True


def _redis_answers() -> bool:
    try:
        return bool(get_redis_connection("default").ping())
    except (RedisError, ConnectionInterrupted):
        return False


def figures(request: HttpRequest) -> HttpResponse:
    """What Prometheus scrapes, in its text format: figures of every process of the server."""
    return HttpResponse(metrics.exposition(), content_type=metrics.CONTENT_TYPE)


PROBES = {"/livez": live, "/readyz": ready, "/metrics": figures}


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
