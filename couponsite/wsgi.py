"""The WSGI application: ``granian --interface wsgi couponsite.wsgi:application``."""

from __future__ import annotations

import gc
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from io import BytesIO
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIHandler
from django.core.wsgi import get_wsgi_application

from couponsite.database import limit_statements

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "couponsite.settings")


# The characters of RFC 2046, 5.1.1, but for the space.
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=?-]{1,70}")
# A request that has waited for a slot for so long is answered 503.
_SLOT_SECONDS = 5.0
_PROBE_SECONDS = 1.0
_LARGE_BODIES = 8

StartResponse = Any
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


def plain_content_type(raw: str) -> str:
    """``raw`` without its parameters, but for the boundary of a form.

    Django would decode the query and the body as ``charset`` says, be it ``base64``, and fails outside of all error
    handling over a parameter in an encoding that it does not know. All texts here are UTF-8.
    """
    media_type, *parameters = (part.strip() for part in raw.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        boundary = value.strip('"')
        if name.lower() == "boundary" and _BOUNDARY.fullmatch(boundary):
            return f'{media_type}; boundary="{boundary}"'
    return media_type


def buffer_body(application: Application) -> Application:
    """Reads bodies before anybody answers them or takes a slot for them, and tells their length.

    An answer given before the body is read (401, 404, 405, 415) makes the server close the connection, and a client
    that keeps its connections loses its next request on it. And Django takes a body without Content-Length (chunked,
    HTTP/2) for empty. What is read is bounded: of a body that says it is too large nothing, of one that does not say
    one byte past the limit, which is enough for the refusal. Only a server that ends the input where the body ends can
    be read from like this, and it says so in ``wsgi.input_terminated``; with others a body of unknown length is refused
    (couponsite.middleware).
    """
    from django.conf import settings

    from couponsite.error_pages import is_api_path

    large_bodies = threading.BoundedSemaphore(_LARGE_BODIES)

    def with_body(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        environ["CONTENT_TYPE"] = plain_content_type(environ.get("CONTENT_TYPE", ""))
        api = is_api_path(environ.get("PATH_INFO", ""))
        limit: int = settings.API_MAX_BODY_BYTES if api else settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        if environ.get("wsgi.input_terminated"):
            length = environ.get("CONTENT_LENGTH", "")
            unknown = not length and (
                "HTTP_TRANSFER_ENCODING" in environ or environ["REQUEST_METHOD"] not in ("GET", "HEAD")
            )
            if unknown or (length.isdigit() and 0 < int(length) <= limit):
                large = unknown or int(length) > settings.API_MAX_BODY_BYTES
                # The threads are many and would hold as many large bodies at once.
                with large_bodies if large and not api else nullcontext():
                    body = environ["wsgi.input"].read(limit + 1)
                environ["wsgi.input"] = BytesIO(body)
                environ["CONTENT_LENGTH"] = length or str(len(body))
        return application(environ, start_response)

    return with_body


def takes_turns(application: WSGIHandler) -> Application:
    """Lets ``WEB_THREADS`` requests work at a time, and those who wait for long know; probes have slots of their own.

    The server has a thread for each connection, so that what waits (a body that comes slowly, a request in line)
    keeps nothing from others.
    """
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIRequest
    from django.db import connections

    from common.api.problems import unavailable
    from common.processes.slots import Slots
    from couponsite.health import PROBES, live, metrics_view

    slots, probe_slots = Slots(settings.WEB_THREADS), Slots(1)
    without_database = {path for path, probe in PROBES.items() if probe in (live, metrics_view)}

    def in_turn(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path in without_database:
            return answer(environ, start_response)
        mine, seconds = (probe_slots, _PROBE_SECONDS) if path in PROBES else (slots, _SLOT_SECONDS)
        if not mine.take(seconds):
            refusal = unavailable(WSGIRequest(environ), "Too many requests are under way. It was not executed.")
            start_response(f"{refusal.status_code} {refusal.reason_phrase}", list(refusal.items()))
            return [refusal.content]
        try:
            return answer(environ, start_response)
        finally:
            mine.give_back()
            # What a request that gave its slot back early has opened since, which is rare, belongs to no slot.
            connections.close_all()

    def answer(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        response: Any = application(environ, start_response)
        if response.streaming:
            return response  # type: ignore[no-any-return]
        # Closed while the slot's connection is at hand: the signal of the request's end looks after it.
        response.close()
        return [response.content]

    return in_turn


try:
    limit_statements()
    application = buffer_body(takes_turns(get_wsgi_application()))
    from kafka_bridge.operating.heartbeat import Heartbeat
    from kafka_bridge.outbox.backpressure import outbox_backpressure

    outbox_backpressure.start()
    Heartbeat("web").start()
except ImproperlyConfigured as error:
    sys.exit(str(error))

# What is loaded by now lives as long as the process: collections need not walk it, which cuts the tail.
gc.collect()
gc.freeze()
