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

from common.processes.stack_dump import StackDumper
from couponsite.database import limit_statements
from couponsite.parent_death import end_with_parent

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "couponsite.settings")


# The characters of RFC 2046, 5.1.1, without the space.
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=?-]{1,70}")
# A request that gets no slot within this time is answered 503.
_SLOT_SECONDS = 5.0
_PROBE_SECONDS = 1.0
_LARGE_BODIES = 8

StartResponse = Any
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


def plain_content_type(raw: str) -> str:
    """Remove the parameters of a content type, except the boundary of a form.

    Django would decode the query and the body with any ``charset``, even ``base64``, and raises outside its error
    handling for a parameter in an unknown encoding. All texts of this service are UTF-8.
    """
    media_type, *parameters = (part.strip() for part in raw.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        boundary = value.strip('"')
        if name.lower() == "boundary" and _BOUNDARY.fullmatch(boundary):
            return f'{media_type}; boundary="{boundary}"'
    return media_type


def buffer_body(application: Application) -> Application:
    """Read the body before a slot is taken and the request is handled, and set its Content-Length.

    A response sent before the body is read (401, 404, 405, 415) makes the server close the connection, and a client
    with keep-alive loses its next request. Django also treats a body without Content-Length (chunked, HTTP/2) as empty.
    Reading is bounded: a body that announces too large a size is not read, and a body of unknown size is read up to one
    byte past the limit, which is enough to refuse it. Nothing is read unless the server declares by
    ``wsgi.input_terminated`` that its input ends with the body; couponsite.middleware then refuses unknown sizes.
    """
    from django.conf import settings

    from couponsite.error_pages import is_api_path
    from couponsite.middleware import body_limit

    large_bodies = threading.BoundedSemaphore(_LARGE_BODIES)

    def with_body(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        environ["CONTENT_TYPE"] = plain_content_type(environ.get("CONTENT_TYPE", ""))
        api = is_api_path(environ.get("PATH_INFO", ""))
        limit = body_limit(environ.get("PATH_INFO", ""))
        if environ.get("wsgi.input_terminated"):
            length = environ.get("CONTENT_LENGTH", "")
            unknown = not length and (
                "HTTP_TRANSFER_ENCODING" in environ or environ["REQUEST_METHOD"] not in ("GET", "HEAD")
            )
            if unknown or (length.isdigit() and 0 < int(length) <= limit):
                large = unknown or int(length) > settings.API_MAX_BODY_BYTES
                # Bounds memory: otherwise every thread could hold a large body at once.
                with large_bodies if large and not api else nullcontext():
                    body = environ["wsgi.input"].read(limit + 1)
                environ["wsgi.input"] = BytesIO(body)
                environ["CONTENT_LENGTH"] = length or str(len(body))
        return application(environ, start_response)

    return with_body


def limit_concurrency(application: WSGIHandler) -> Application:
    """Run at most ``WEB_THREADS`` requests at a time, and answer 503 after a long wait; probes have their own slot.

    The server has one thread per connection, so that a slow body or a request that waits for a slot does not block
    other connections.
    """
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIRequest
    from django.db import connections

    from common.api.problems import unavailable
    from common.processes.slots import Slots
    from couponsite.health import PROBES, live, metrics_view

    slots, probe_slots = Slots(settings.WEB_THREADS), Slots(1)
    without_database = {path for path, probe in PROBES.items() if probe in (live, metrics_view)}

    def with_slot(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path in without_database:
            return answer(environ, start_response)
        mine, seconds = (probe_slots, _PROBE_SECONDS) if path in PROBES else (slots, _SLOT_SECONDS)
        if not mine.take(seconds):
            refusal = unavailable(
                WSGIRequest(environ), "Too many requests are in progress. This request was not executed."
            )
            start_response(f"{refusal.status_code} {refusal.reason_phrase}", list(refusal.items()))
            return [refusal.content]
        try:
            return answer(environ, start_response)
        finally:
            mine.give_back()
            # A request that released its slot early may, rarely, have opened a connection that belongs to no slot.
            connections.close_all()

    def answer(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        response: Any = application(environ, start_response)
        if response.streaming:
            return response  # type: ignore[no-any-return]
        # Close now, while the thread holds the slot: request_finished cleans up the slot's connection.
        response.close()
        return [response.content]

    return with_slot


try:
    end_with_parent()
    # Before any other thread: they inherit that the signal is blocked.
    StackDumper().start()
    limit_statements()
    from couponsite.intake.client_address import with_client_address

    application = with_client_address(buffer_body(limit_concurrency(get_wsgi_application())))
    from kafka_bridge.operating.heartbeat import Heartbeat
    from kafka_bridge.outbox.backpressure import outbox_backpressure
    from kafka_bridge.outbox.wake import RelayWaker

    outbox_backpressure.start()
    RelayWaker().start()
    Heartbeat("site").run_until_exit()
except ImproperlyConfigured as error:
    sys.exit(str(error))

# Objects loaded by now live as long as the process: excluding them from collections cuts the tail latency.
gc.collect()
gc.freeze()
