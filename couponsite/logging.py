"""Structured logs: one JSON line per event on stderr, or coloured text while debugging.

Loggers of the standard library use the same formatter, so lines of Django have the same format.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from common.processes.log_limit import LogLimit

# Second line of defence: our code does not log these, but a library might.
_HIDDEN = frozenset({"access", "authorization", "body", "cookie", "password", "payload", "refresh", "secret", "token"})


def hide_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace values under names that hold payloads or credentials."""
    for name in _HIDDEN & event.keys():
        event[name] = "[hidden]"
    return event


def _shared_processors(*, debug: bool) -> list[Processor]:
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        hide_secrets,
    ]
    if not debug:
        # Plain text: the structured variant prints local variables, which may hold payloads.
        processors.append(structlog.processors.format_exc_info)
    return processors


class RepeatFilter(logging.Filter):
    """Pass one line of a kind per ``seconds`` from the named ``loggers``, with the number of lines suppressed before.

    Clients of an unreachable broker log the same error many times a second. The kind is the logger and the first word
    of the message: librdkafka begins its lines with a code like FAIL.
    """

    def __init__(self, loggers: Collection[str], seconds: float) -> None:
        super().__init__()
        self._loggers = frozenset(loggers)
        self._limit = LogLimit(seconds)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name not in self._loggers:
            return True
        lines = self._limit.due((record.name, record.getMessage().partition(" ")[0]))
        if lines > 1:
            record.msg, record.args = f"{record.getMessage()} ({lines - 1} similar lines suppressed)", ()
        return lines > 0


class RequestFormatter(logging.Formatter):
    """Format the lines of ``coupons.requests``: the same JSON as structlog, at a fifth of the cost."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        requests: Sequence[Mapping[str, Any]] = record.__dict__.get("requests", ({},))
        return "\n".join(
            msgspec.json.encode({"event": record.msg, **fields, "level": "info", "timestamp": moment}).decode()
            for fields in requests
        )


def logging_config(*, debug: bool, log_requests: bool = True) -> dict[str, Any]:
    """Build Django's ``LOGGING``; with ``log_requests`` each issue request logs its acceptance and its result."""
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if debug
        else structlog.processors.JSONRenderer()
    )
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "structured": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": [
                    structlog.stdlib.PositionalArgumentsFormatter(),
                    structlog.stdlib.ExtraAdder(allow=()),
                    *_shared_processors(debug=debug),
                ],
                "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            },
            "requests": {"()": RequestFormatter},
        },
        "filters": {"repeats": {"()": RepeatFilter, "loggers": ["librdkafka", "kafka_bridge.client"], "seconds": 5.0}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": "structured", "filters": ["repeats"]},
            "requests": {"class": "logging.StreamHandler", "formatter": "structured" if debug else "requests"},
        },
        "root": {"handlers": ["stderr"], "level": "INFO"},
        "loggers": {
            # Replaces Django's own handlers; the root handler is enough.
            "django": {"handlers": [], "level": "INFO", "propagate": True},
            # Django logs a warning per 4xx response: thousands of 409 a second are normal here.
            "django.request": {"level": "ERROR"},
            "django.security": {"level": "CRITICAL"},
            "coupons.requests": {
                "handlers": ["requests"],
                "level": "INFO" if log_requests else "WARNING",
                "propagate": False,
            },
        },
    }


def configure_structlog(*, debug: bool) -> None:
    """Route structlog's loggers to the standard library's handlers; called once per process."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared_processors(debug=debug),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
