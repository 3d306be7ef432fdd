"""The alerts that are open, and those that ended, newest first."""

from __future__ import annotations

from django.db.models import CharField, DurationField, Exists, ExpressionWrapper, F, OuterRef, Q, QuerySet, Value
from django.db.models.functions import Concat, Now

from common.postgres.distinct import distinct_sql

from ..models import Alert
from .silences import silences

_TABLE = Alert._meta.db_table

# Far more than rules with their subjects: a rule is read by one step into the index, whatever the number of its alerts.
_MOST_RULES = 1000
_MOST_MATCHES = 100

_RULES = distinct_sql(_TABLE, "rule", condition="ended_at IS NOT NULL", most=_MOST_RULES)
_ENDED_OF_RULES = f"""
    SELECT ended.id, ended.rule, ended.severity, ended.summary, ended.runbook, ended.started_at, ended.ended_at,
           ended.ended_at - ended.started_at AS lasted
    FROM (
        SELECT rule FROM ({_RULES}) AS names WHERE strpos(rule, %(text)s) > 0 LIMIT {_MOST_MATCHES}
    ) AS named
    CROSS JOIN LATERAL (
        -- Not "rule = named.rule", for which the index by time may be chosen: of a rare rule it reads everything.
        SELECT * FROM {_TABLE}
        WHERE rule >= named.rule AND rule <= named.rule AND ended_at IS NOT NULL
        ORDER BY rule DESC, ended_at DESC LIMIT %(limit)s
    ) AS ended
    ORDER BY ended.ended_at DESC LIMIT %(limit)s
"""


def open_alerts() -> QuerySet[Alert]:
    """Select the open alerts, critical ones first, then the oldest.

    ``lasted`` is for how long each has been open, ``is_silenced`` whether its rule, or its rule with this subject, is.
    """
    lasted = ExpressionWrapper(Now() - F("started_at"), output_field=DurationField())
    of_alert = silences().alias(
        of=ExpressionWrapper(OuterRef("rule"), output_field=CharField()),
        described_in=ExpressionWrapper(OuterRef("runbook"), output_field=CharField()),
    )
    # As the notifications do: the beginning of an alert's rule may be another subject.
    of_rule = Q(described_in=Concat(Value("docs/runbooks/"), "rule", Value(".md")))
    is_silenced = Exists(of_alert.filter(Q(of=F("rule")) | of_rule))
    found = Alert.objects.filter(ended_at=None).annotate(lasted=lasted, is_silenced=is_silenced)
    # "critical" is before "warning" in the alphabet.
    return found.order_by("severity", "started_at")


def ended_alerts(text: str = "", *, limit: int = 50) -> list[Alert]:
    """Return the alerts that ended last, of rules that contain ``text`` if it is not empty; each with ``lasted``.

    Reads by index: a search looks at the first 1000 rules in the order of their names.
    """
    if not text:
        lasted = ExpressionWrapper(F("ended_at") - F("started_at"), output_field=DurationField())
        return list(Alert.objects.exclude(ended_at=None).annotate(lasted=lasted).order_by("-ended_at")[:limit])
    if "\0" in text:
        return []
    return list(Alert.objects.raw(_ENDED_OF_RULES, {"text": text, "limit": limit}))
