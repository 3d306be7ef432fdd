"""Which rows of the outbox are published, as the product defines it."""

from __future__ import annotations

from django.db.models import BooleanField, QuerySet
from django.db.models.expressions import RawSQL

from kafka_bridge.models import OutboxMessage
from kafka_bridge.outbox.published import is_published_sql

_IS_PUBLISHED = RawSQL(is_published_sql(), [], BooleanField())


def published_rows() -> QuerySet[OutboxMessage]:
    return OutboxMessage.objects.filter(_IS_PUBLISHED)


def unpublished_rows() -> QuerySet[OutboxMessage]:
    return OutboxMessage.objects.exclude(_IS_PUBLISHED)
