"""All settings of the service. Operators set the environment variables listed in .env.example."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from couponsite import api_document, kafka_limits
from couponsite.database import Connection, Cursor
from couponsite.environment.reader import Environment
from couponsite.environment.values import Limits
from couponsite.logging import logging_config
from couponsite.process_name import is_server, process_name
from couponsite.version import service_version
from kafka_bridge.routes import (
    LONGEST_PREFIX,
    MOST_REPLICAS,
    TOPIC_PREFIX,
    Route,
    former_topics,
    overlay_concurrency,
    overlay_groups,
    overlay_routes,
)

BASE_DIR = Path(__file__).resolve().parent.parent

env = Environment(os.environ)

# Shown with every process; two versions side by side are a deploy that is not finished. An image has it built in.
SERVICE_VERSION = env.text("SERVICE_VERSION", default=service_version(BASE_DIR), longest=64)

DEBUG = env.flag("DEBUG", default=False)


def only_in_debug(value: str) -> str | None:
    """Return a default that is used with DEBUG only; without DEBUG the variable is required."""
    return value if DEBUG else None


# Security

SECRET_KEY = env.secret(
    "SECRET_KEY",
    only_in_debug("debug-only-secret-that-signs-nothing-of-value"),
    # The key signs tokens with HS256, which requires a key as long as its hash (RFC 7518, 3.2).
    at_least=1 if DEBUG else 32,
)
ALLOWED_HOSTS = env.hosts("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.origins("CSRF_TRUSTED_ORIGINS")

# The number of trusted proxies in front of the service: with 0 all X-Forwarded-* headers are ignored.
TRUSTED_PROXY_COUNT = env.integer("TRUSTED_PROXY_COUNT", default=0, minimum=0, maximum=16)
if TRUSTED_PROXY_COUNT:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

# The web process speaks plain http: a redirect to https needs a proxy that terminates TLS and forwards the scheme.
# couponsite.middleware redirects instead of Django, which has no exception for loopback; hence the silenced check.
HTTPS_REDIRECT = env.flag("SECURE_SSL_REDIRECT", default=TRUSTED_PROXY_COUNT > 0)
SECURE_SSL_REDIRECT = False
SILENCED_SYSTEM_CHECKS = ["security.W008"]
SECURE_HSTS_SECONDS = 0 if DEBUG else int(timedelta(days=365).total_seconds())
SECURE_HSTS_INCLUDE_SUBDOMAINS = True
SECURE_HSTS_PRELOAD = True
SESSION_COOKIE_SECURE = not DEBUG
CSRF_COOKIE_SECURE = not DEBUG
SESSION_COOKIE_AGE = int(timedelta(hours=12).total_seconds())
SESSION_SERIALIZER = "django.contrib.sessions.serializers.JSONSerializer"
X_FRAME_OPTIONS = "DENY"
CSRF_FAILURE_VIEW = "couponsite.error_pages.csrf_failure"
# For forms of the admin; couponsite.middleware applies the smaller API_MAX_BODY_BYTES to the API.
DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 1024 * 1024

ACCESS_TOKEN_LIFETIME = timedelta(minutes=15)
REFRESH_TOKEN_LIFETIME = timedelta(days=1)
# Login attempts per client address, and per account.
AUTH_TOKEN_THROTTLE = env.rate("AUTH_TOKEN_THROTTLE", default="10/min")

# Application

INSTALLED_APPS = [
    # Before the admin, whose templates it overrides.
    "unfold.apps.BasicAppConfig",
    "couponsite.admin.apps.CouponAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "couponsite",
    "kafka_bridge",
    "coupons",
    "orders",
    # Not part of the image: it needs the development packages.
    *(["demo"] if find_spec("demo") else []),
]
# answer_probes comes first, so that no other middleware refuses probes. API calls with a token skip the middleware
# of sessions and messages.
MIDDLEWARE = [
    "couponsite.health.answer_probes",
    "couponsite.middleware.https_outside_loopback",
    "django.middleware.security.SecurityMiddleware",
    "couponsite.middleware.check_body",
    "couponsite.middleware.StaticFilesMiddleware",
    "django.middleware.common.CommonMiddleware",
    "couponsite.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "couponsite.middleware.AuthenticationMiddleware",
    "couponsite.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "couponsite.urls"
WSGI_APPLICATION = "couponsite.wsgi.application"
APPEND_SLASH = False
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
LOGGING = logging_config(debug=DEBUG, log_requests=env.flag("LOG_REQUESTS", default=True))

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
BUSINESS_TIME_ZONE = env.time_zone("BUSINESS_TIME_ZONE", default="Asia/Seoul")

STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
# Without `collectstatic` the files are served from the apps: a fresh checkout needs no build step.
WHITENOISE_ALLOW_ALL_ORIGINS = False
WHITENOISE_USE_FINDERS = DEBUG or not (
    process_name() == "coupons collectstatic" or (STATIC_ROOT / "staticfiles.json").exists()
)
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"
        if WHITENOISE_USE_FINDERS
        else "whitenoise.storage.CompressedManifestStaticFilesStorage"
    },
}

# PostgreSQL and Redis

_database = env.database("DATABASE_URL", only_in_debug("postgres://postgres@localhost:5432/coupons"))
DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        **_database,
        "CONN_MAX_AGE": 60,
        # A SELECT 1 per request is a round trip; common.postgres.connections polls the socket instead.
        "CONN_HEALTH_CHECKS": False,
        # Forms read their choices outside transactions, where a pooler in transaction mode drops a named cursor.
        "DISABLE_SERVER_SIDE_CURSORS": is_server(),
        "OPTIONS": {
            "connect_timeout": 3,
            "application_name": process_name(),
            "keepalives_idle": 30,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
            # Both set the limits of statements, lock waits and idle transactions.
            "connection_factory": Connection,
            "cursor_factory": Cursor,
            **_database.get("OPTIONS", {}),
        },
    }
}

REDIS_URL = env.redis("REDIS_URL", only_in_debug("redis://localhost:6379/0"))
CACHES: dict[str, dict[str, Any]] = {
    "default": {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "site",
        "OPTIONS": {
            "SERIALIZER": "django_redis.serializers.json.JSONSerializer",
            "SOCKET_CONNECT_TIMEOUT": 0.5,
            "SOCKET_TIMEOUT": 1.0,
            # Closes connections to a server that has become a replica.
            "CONNECTION_POOL_CLASS": "common.redis_client.Pool",
            # One retry for a pooled connection that the server has closed; timeouts are not retried.
            "CONNECTION_POOL_KWARGS": {
                "retry": Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            },
        },
    },
    # Counters of this process, used while Redis is unavailable.
    "process": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "process"},
}

# Percentage of Redis memory in use above which statuses are no longer cached: the rest is reserved for gates.
STATUS_CACHE_MEMORY_PERCENT = env.integer("STATUS_CACHE_MEMORY_PERCENT", default=50, minimum=0, maximum=90)

# Pages for staff

# Shown on every page of the staff and in every notification: "production", "staging".
ENVIRONMENT_NAME = env.text("ENVIRONMENT_NAME", default="", longest=40)
UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "Flash coupons",
    "SITE_HEADER": "Flash coupons",
    "SITE_DROPDOWN": [
        {"icon": "monitoring", "title": "Operations", "link": "/ops/"},
        {"icon": "storefront", "title": "Coupons", "link": "/"},
    ],
    "ENVIRONMENT": [ENVIRONMENT_NAME, "warning"] if ENVIRONMENT_NAME else None,
    "SITE_SYMBOL": "confirmation_number",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": f"{STATIC_URL}couponsite/icon.svg"}],
    "SHOW_VIEW_ON_SITE": False,
}

# API

REST_FRAMEWORK: dict[str, Any] = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "couponsite.auth.authentication.BearerAuthentication",
        "couponsite.auth.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["common.api.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["common.api.parsers.StrictJSONParser"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "common.api.parsers.JSONOnly",
    "DEFAULT_METADATA_CLASS": None,
    "DEFAULT_SCHEMA_CLASS": "common.api.schema.AutoSchema",
    "EXCEPTION_HANDLER": "common.api.problems.exception_handler",
    "UNAUTHENTICATED_USER": None,
    "URL_FORMAT_OVERRIDE": None,
}
API_MAX_BODY_BYTES = 16 * 1024

SPECTACULAR_SETTINGS = api_document.SETTINGS

# Kafka

KAFKA_BOOTSTRAP_SERVERS = env.servers("KAFKA_BOOTSTRAP_SERVERS", only_in_debug("localhost:9092"))
KAFKA_TOPIC_PREFIX = env.regex(
    "KAFKA_TOPIC_PREFIX",
    "",
    TOPIC_PREFIX,
    f"letters, digits, '.', '_' and '-', at most {LONGEST_PREFIX} characters, without '__' at the beginning",
    limits=Limits(("a", "_", "x" * LONGEST_PREFIX), ("x" * (LONGEST_PREFIX + 1), "a b", "a/", "가", "__", "__a")),
)
KAFKA_REPLICATION_FACTOR = env.integer("KAFKA_REPLICATION_FACTOR", default=1, minimum=1, maximum=MOST_REPLICAS)

# The CloudEvents `source` of every event.
EVENT_SOURCE = "/coupon-service"
# The body fields that may be a message key, each with its attribute on a Struct.
EVENT_KEY_FIELDS = {"couponType": "coupon_type", "couponId": "coupon_id", "orderId": "order_id"}
# Sets of key fields that every body of the same event types holds: an overlay may change one for another.
INTERCHANGEABLE_EVENT_KEYS = (frozenset({"couponType", "couponId"}),)
# The `type` of a problem (RFC 9457) is this prefix and the problem's code.
PROBLEM_TYPE_PREFIX = "urn:coupon-service:problem:"
# Field and path in the examples of problems in the OpenAPI document.
PROBLEM_EXAMPLE_FIELD = "couponType"
PROBLEM_EXAMPLE_PATH = "/api/v1/coupons/issue-async"

KAFKA_ROUTES: dict[str, Route] = env.json_overlay(
    "KAFKA_ROUTES",
    partial(
        overlay_routes,
        {
            "coupon.issue.requested.v1": Route("coupon-issue-request", key="couponType", partitions=5),
            "coupon.issue.succeeded.v1": Route("coupon-issue-response", key="couponType", partitions=5),
            "coupon.issue.failed.v1": Route("coupon-issue-response", key="couponType", partitions=5),
            "order.completed.v1": Route("order-completed", key="orderId", partitions=3),
            "order.cancelled.v1": Route("order-cancelled", key="orderId", partitions=3),
        },
        prefix=KAFKA_TOPIC_PREFIX,
        interchangeable_keys=INTERCHANGEABLE_EVENT_KEYS,
    ),
    limits=kafka_limits.ROUTES,
)
# By event type, topics of earlier routes: history is read from them too, consumers do not subscribe to them.
KAFKA_FORMER_TOPICS: dict[str, tuple[str, ...]] = env.json_overlay(
    "KAFKA_FORMER_TOPICS",
    partial(former_topics, KAFKA_ROUTES, prefix=KAFKA_TOPIC_PREFIX),
    limits=kafka_limits.FORMER_TOPICS,
)
# The groups of a paid order. Those with equal ids are one subscription, see kafka_bridge.subscriptions.
ORDER_EFFECTS = ("notification", "data-platform", "ranking", "monitoring")
KAFKA_GROUPS: dict[str, str] = env.json_overlay(
    "KAFKA_GROUPS",
    partial(
        overlay_groups,
        {
            "issue": "coupon-issue-consumer-group",
            "results": "coupon-result-group",
            "notification": "order-notification-group",
            "data-platform": "order-data-platform-group",
            "ranking": "order-ranking-group",
            "monitoring": "order-monitoring-group",
            "dead-letters": "dead-letter-monitor-group",
        },
        may_share=ORDER_EFFECTS,
    ),
    limits=kafka_limits.GROUPS,
)
# Consumers of a group per process.
CONSUMER_CONCURRENCY: dict[str, int] = env.json_overlay(
    "CONSUMER_CONCURRENCY", partial(overlay_concurrency, KAFKA_GROUPS), limits=kafka_limits.CONCURRENCY
)
KAFKA_PRODUCER_CONFIG = env.client_options(
    "KAFKA_PRODUCER_CONFIG",
    fixed=kafka_limits.PRODUCER_FIXED,
    ranges=kafka_limits.PRODUCER,
    renamed=kafka_limits.PRODUCER_RENAMED,
    elsewhere=kafka_limits.PRODUCER_ELSEWHERE,
)
KAFKA_CONSUMER_CONFIG = env.client_options(
    "KAFKA_CONSUMER_CONFIG",
    fixed=kafka_limits.CONSUMER_FIXED,
    ranges=kafka_limits.CONSUMER,
    renamed=kafka_limits.CONSUMER_RENAMED,
    elsewhere=kafka_limits.CONSUMER_ELSEWHERE,
)

# One poll of librdkafka returns the batch (at most a million messages there), and one transaction handles it: 10,000
# messages are seconds of work.
CONSUMER_BATCH_SIZE = env.integer("CONSUMER_BATCH_SIZE", default=1000, minimum=1, maximum=10_000)
# The consumer does not poll during these attempts: see kafka_bridge.client for how long Kafka waits.
CONSUMER_MAX_ATTEMPTS = env.integer("CONSUMER_MAX_ATTEMPTS", default=3, minimum=1, maximum=10)
CONSUMER_BACKOFF_SECONDS = env.decimal("CONSUMER_BACKOFF_SECONDS", default=1.0, minimum=0.01, maximum=10.0)

# A set but empty variable would make prometheus_client write its files into the working folder.
if not env.folder("PROMETHEUS_MULTIPROC_DIR"):
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
# The Procfile passes these to the web server, whose own error messages do not name the variables.
env.integer("PORT", default=8000, minimum=0, maximum=65535)
env.address("HOST", default="0.0.0.0")
env.integer("WEB_CONCURRENCY", default=1, minimum=1, maximum=128)
# Requests that one process of the site handles at once, each with a database connection.
WEB_THREADS = env.integer("WEB_THREADS", default=16, minimum=1, maximum=256)
# Idle connections are closed after this time; granian accepts at most 60.
env.integer("WEB_KEEP_ALIVE_SECONDS", default=60, minimum=1, maximum=60)
# Where the intake finds the site: at a URL, else at a unix socket, whose path the system limits to 107 bytes.
SITE_SOCKET = env.text("SITE_SOCKET", default="site.sock", longest=100)
SITE_URL = env.url("SITE_URL", "")
env.integer("SITE_PORT", default=8001, minimum=1, maximum=65535)
env.integer("SITE_CONCURRENCY", default=1, minimum=1, maximum=128)
METRICS_PORT = env.integer("METRICS_PORT", default=0, minimum=0, maximum=65535)
METRICS_HOST = env.address("METRICS_HOST", default="127.0.0.1")

# Ten years: times computed with it stay within the range of datetime.
_MOST_HOURS = 10 * 366 * 24
OUTBOX_RETENTION_HOURS = env.integer("OUTBOX_RETENTION_HOURS", default=72, minimum=0, maximum=_MOST_HOURS)
SAMPLE_RETENTION_DAYS = env.integer("SAMPLE_RETENTION_DAYS", default=30, minimum=1, maximum=3660)
# How long rows are kept that `housekeep` deletes. The inbox: never before its events are on no topic any more.
INBOX_RETENTION_HOURS = env.integer("INBOX_RETENTION_HOURS", default=168, minimum=1, maximum=_MOST_HOURS)
# A week at least: until then a message on a dead-letter topic without a row counts as foreign.
DEAD_LETTER_RETENTION_DAYS = env.integer("DEAD_LETTER_RETENTION_DAYS", default=90, minimum=7, maximum=3660)
NOTIFICATION_RETENTION_DAYS = env.integer("NOTIFICATION_RETENTION_DAYS", default=30, minimum=1, maximum=3660)
HEARTBEAT_RETENTION_HOURS = env.integer("HEARTBEAT_RETENTION_HOURS", default=1, minimum=1, maximum=_MOST_HOURS)
ALERT_RETENTION_DAYS = env.integer("ALERT_RETENTION_DAYS", default=90, minimum=1, maximum=3660)
# Clients are promised a day.
IDEMPOTENCY_KEY_RETENTION_HOURS = env.integer(
    "IDEMPOTENCY_KEY_RETENTION_HOURS", default=48, minimum=24, maximum=_MOST_HOURS
)
REHEARSAL_RETENTION_HOURS = env.integer("REHEARSAL_RETENTION_HOURS", default=1, minimum=1, maximum=_MOST_HOURS)
ORDER_MINUTE_RETENTION_DAYS = env.integer("ORDER_MINUTE_RETENTION_DAYS", default=90, minimum=1, maximum=3660)
OUTBOX_MAX_AGE_SECONDS = env.integer("OUTBOX_MAX_AGE_SECONDS", default=7200, minimum=1, maximum=30 * 86400)
OUTBOX_MAX_DEPTH = env.integer("OUTBOX_MAX_DEPTH", default=5_000_000, minimum=1, maximum=1_000_000_000)
REQUEST_DEADLINE_SECONDS = env.integer("REQUEST_DEADLINE_SECONDS", default=300, minimum=1, maximum=30 * 86400)
RECONCILE_PATIENCE_SECONDS = env.integer("RECONCILE_PATIENCE_SECONDS", default=60, minimum=1, maximum=86400)

# Orders and their effects

ORDER_PAYMENT_MINUTES = env.integer("ORDER_PAYMENT_MINUTES", default=30, minimum=1, maximum=366 * 24 * 60)
# A class with the methods of orders.clients.payment.PaymentGateway.
PAYMENT_GATEWAY = env.regex(
    "PAYMENT_GATEWAY",
    "orders.clients.payment.ApprovingGateway",
    re.compile(r"(?=.{1,200}\Z)[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII),
    "the dotted name of a class, at most 200 characters",
    limits=Limits(("a.B", "a." + "B" * 198), ("a." + "B" * 199, "B", "a..B", "a b.C", "a.B()")),
)
ORDER_EFFECT_POLICIES: dict[str, str] = env.choices(
    "ORDER_EFFECT_POLICIES",
    default=dict.fromkeys(ORDER_EFFECTS, "retry_then_dead_letter"),
    allowed=("retry_then_dead_letter", "log_only"),
)
ALIMTALK_URL = env.url("ALIMTALK_URL", "")
ALIMTALK_KEY = env.text("ALIMTALK_KEY", default="", longest=4096)
ALIMTALK_TEMPLATES: dict[str, str] = env.choices(
    "ALIMTALK_TEMPLATES",
    default={
        "order.completed": "ORDER_COMPLETED",
        "coupon.issue.succeeded": "COUPON_ISSUED",
        "coupon.issue.failed": "COUPON_NOT_ISSUED",
    },
)
DATA_PLATFORM_URL = env.url("DATA_PLATFORM_URL", "")
ORDER_MONITORING_URL = env.url("ORDER_MONITORING_URL", "")
# Timeout of one call to AlimTalk, the data platform or the monitoring service.
HTTP_TIMEOUT_SECONDS = env.decimal("HTTP_TIMEOUT_SECONDS", default=3.0, minimum=0.1, maximum=30.0)

# Alarms

# Where the beginning and the end of every alert are posted; empty: nowhere.
ALERT_WEBHOOK_URL = env.url("ALERT_WEBHOOK_URL", "")
# Called every 60 s while alarms are judged: the service behind it raises the alarm when that stops.
ALERT_DEADMAN_URL = env.url("ALERT_DEADMAN_URL", "")
# An alert ends once its condition has been false for so long.
ALERT_END_SECONDS = env.decimal("ALERT_END_SECONDS", default=60.0, minimum=0.0, maximum=3600.0)
# A process without a heartbeat for so long is silent; it beats every five seconds. A loop without a pass hangs.
ALERT_SILENT_SECONDS = env.integer("ALERT_SILENT_SECONDS", default=20, minimum=15, maximum=3600)
ALERT_HANGING_SECONDS = env.integer("ALERT_HANGING_SECONDS", default=60, minimum=10, maximum=86400)
# An alert is opened above these values; 0 turns it off.
ALERT_ERROR_PERCENT = env.decimal("ALERT_ERROR_PERCENT", default=0.5, minimum=0.0, maximum=100.0)
ALERT_DEAD_LETTERS = env.integer("ALERT_DEAD_LETTERS", default=10, minimum=0, maximum=1_000_000)
ALERT_OUTBOX_SECONDS = env.integer("ALERT_OUTBOX_SECONDS", default=60, minimum=0, maximum=30 * 86400)
ALERT_HELD_SECONDS = env.integer("ALERT_HELD_SECONDS", default=60, minimum=0, maximum=30 * 86400)
ALERT_SOLD_PERCENT = env.integer("ALERT_SOLD_PERCENT", default=95, minimum=0, maximum=100)
ALERT_REQUEST_DEAD_LETTERED_MINUTES = env.integer(
    "ALERT_REQUEST_DEAD_LETTERED_MINUTES", default=10, minimum=0, maximum=1440
)
ALERT_HOUSEKEEPING_MINUTES = env.integer("ALERT_HOUSEKEEPING_MINUTES", default=60, minimum=0, maximum=30 * 1440)
ALERT_ORDERS_PER_MINUTE = env.integer("ALERT_ORDERS_PER_MINUTE", default=6000, minimum=0, maximum=1_000_000_000)
ALERT_CANCELLED_PERCENT = env.integer("ALERT_CANCELLED_PERCENT", default=20, minimum=0, maximum=100)
# Milliseconds, and for how many seconds the lag must stay above them.
ALERT_LAG_MS = env.integer("ALERT_LAG_MS", default=1000, minimum=0, maximum=86_400_000)
ALERT_LAG_SECONDS = env.decimal("ALERT_LAG_SECONDS", default=10.0, minimum=0.0, maximum=3600.0)
# The size of PostgreSQL's disk, which preflight compares with what an event needs; 0: not known.
POSTGRES_DISK_BYTES = env.integer("POSTGRES_DISK_BYTES", default=0, minimum=0, maximum=10**15)
# An alert is opened while fewer brokers are there.
KAFKA_BROKERS_EXPECTED = env.integer(
    "KAFKA_BROKERS_EXPECTED", default=KAFKA_BOOTSTRAP_SERVERS.count(",") + 1, minimum=1, maximum=1000
)
