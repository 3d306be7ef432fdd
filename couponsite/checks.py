"""System checks of settings that depend on each other or on other servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured

from common.processes.lifecycle import check_redis, first_line
from common.processes.outages import BadRedisDatabase, ServiceUnavailable
from kafka_bridge.operating.group_pauses import workers
from kafka_bridge.registry import transports
from orders.clients.payment import payment_gateway

_SAFE_REPLICATION = 3


@register(Tags.compatibility)
def topics_are_no_transports(app_configs: Sequence[AppConfig] | None, **_options: Any) -> list[CheckMessage]:
    """A topic must not have the name of another transport: its outbox rows would never be sent to Kafka.

    The apps register transports, so the settings do not know them. Raises, like ``payment_gateway_can_be_used``.
    """
    named = [
        (f"KAFKA_ROUTES: {event_type}: {field}", topic)
        for event_type, route in settings.KAFKA_ROUTES.items()
        for field, topic in (("topic", route.topic), ("deadLetterTopic", route.dead_letter_topic))
    ]
    named += [
        (f"KAFKA_FORMER_TOPICS: {event_type}: a topic", topic)
        for event_type, topics in settings.KAFKA_FORMER_TOPICS.items()
        for topic in topics
    ]
    for what, topic in named:
        if topic in transports():
            raise ImproperlyConfigured(f"{what} must not be {topic!r}, where the events of another transport are kept")
    return []


@register(Tags.compatibility)
def group_ids_are_no_workers(app_configs: Sequence[AppConfig] | None, **_options: Any) -> list[CheckMessage]:
    """A group's id must not be the name of a worker, which is what a pause of that name is for.

    The apps register workers, so the settings do not know them. Raises, like ``payment_gateway_can_be_used``.
    """
    for group, group_id in settings.KAFKA_GROUPS.items():
        if worker := workers().get(group_id):
            raise ImproperlyConfigured(
                f"KAFKA_GROUPS: {group}: the id must not be {group_id!r}, which names {worker.what}"
            )
    return []


@register(Tags.compatibility)
def payment_gateway_can_be_used(app_configs: Sequence[AppConfig] | None, **_options: Any) -> list[CheckMessage]:
    """Load the gateway at start: with a broken gateway every payment would stay in doubt.

    Raises instead of returning an Error, so that a start that fails over a setting prints one line.
    """
    name = settings.PAYMENT_GATEWAY
    try:
        gateway = payment_gateway()
    except Exception as error:
        raise ImproperlyConfigured(f"PAYMENT_GATEWAY: {name!r} cannot be used: {first_line(error)}") from error
    if missing := [method for method in ("charge", "refund") if not callable(getattr(gateway, method, None))]:
        raise ImproperlyConfigured(
            f"PAYMENT_GATEWAY: {name!r} has no {' and no '.join(missing)}: see orders.clients.payment.PaymentGateway"
        )
    return []


@register(Tags.compatibility)
def redis_has_the_database(app_configs: Sequence[AppConfig] | None, **_options: Any) -> list[CheckMessage]:
    """Ask the server whether the database exists; an unavailable server does not prevent the start."""
    try:
        check_redis()
    except BadRedisDatabase as error:
        raise ImproperlyConfigured(str(error)) from error
    except ServiceUnavailable:
        pass
    return []


@register(Tags.security, deploy=True)
def several_brokers_mean_replication(app_configs: Sequence[AppConfig] | None, **_options: Any) -> list[CheckMessage]:
    """With three brokers and one replica, each stopped broker blocks a third of the requests."""
    brokers = settings.KAFKA_BOOTSTRAP_SERVERS.count(",") + 1
    if brokers < _SAFE_REPLICATION:
        return []
    return [
        Warning(
            f"{event_type} has {replicas} replica(s) on {brokers} brokers.",
            hint="Set KAFKA_REPLICATION_FACTOR=3: then min.insync.replicas is 2 and one broker may be down.",
            id="couponsite.W001",
        )
        for event_type, route in settings.KAFKA_ROUTES.items()
        if (replicas := route.replicas or settings.KAFKA_REPLICATION_FACTOR) < _SAFE_REPLICATION
    ]
