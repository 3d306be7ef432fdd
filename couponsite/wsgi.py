"""The WSGI application: ``granian --interface wsgi couponsite.wsgi:application``."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIHandler
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "couponsite.settings")


def measured(application: WSGIHandler) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    """Gives API bodies that come without Content-Length (chunked, HTTP/2) their length.

    Django takes a request without one for empty. What is read is bounded: one byte past the limit is enough
    for the refusal. Only a server that ends the input where the body ends can be read from like this, and it
    says so in ``wsgi.input_terminated``; with others such a request is refused (couponsite.middleware).
    """
    from django.conf import settings

    from couponsite.problems import is_api_path

    def with_length(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if (
            not environ.get("CONTENT_LENGTH")
            and environ["REQUEST_METHOD"] not in ("GET", "HEAD")
            and environ.get("wsgi.input_terminated")
            and is_api_path(environ.get("PATH_INFO", ""))
        ):
            body = environ["wsgi.input"].read(settings.API_MAX_BODY_BYTES + 1)
            environ["wsgi.input"] = BytesIO(body)
            environ["CONTENT_LENGTH"] = str(len(body))
        return application(environ, start_response)

    return with_length


try:
    application = measured(get_wsgi_application())
    from kafka_bridge.heartbeat import Heartbeat
    from kafka_bridge.pressure import outbox_pressure

    outbox_pressure.start()
    Heartbeat("web").start()
except ImproperlyConfigured as error:
    sys.exit(str(error))

# What is loaded by now lives as long as the process: collections need not walk it, which cuts the tail.
gc.collect()
gc.freeze()
