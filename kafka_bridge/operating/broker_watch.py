"""What the brokers answer: who of them is there, and which of our partitions cannot be written. Kept in PostgreSQL."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from django.conf import settings
from django.db import connection

from common.processes.outages import ServiceUnavailable

from ..client import AdminClient, KafkaError, KafkaException, TopicMetadata, make_admin, topic_configs
from ..models import BrokerState
from ..registry import prefixed
from ..routes import topics_of

# How long a request for the metadata may take; a broker that has not answered until then is silent.
ANSWER_SECONDS = 3.0
# A silence longer ago than this was not the one before.
_ROW_SECONDS = 30
# Settings of topics change rarely.
_SETTINGS_SECONDS = 60.0

_SILENT = f"""
    INSERT INTO {BrokerState._meta.db_table} AS state (id, asked_at, silences, few_answers, brokers, problems)
    VALUES (1, statement_timestamp(), 1, 0, '[]', '[]')
    ON CONFLICT (id) DO UPDATE SET
        asked_at = EXCLUDED.asked_at,
        silences = CASE WHEN state.asked_at > statement_timestamp() - %(row)s * interval '1 second'
                        THEN state.silences + 1 ELSE 1 END
"""
_ANSWERED = f"""
    INSERT INTO {BrokerState._meta.db_table} AS state
        (id, asked_at, answered_at, silences, few_answers, brokers, problems)
    VALUES (1, statement_timestamp(), statement_timestamp(), 0, %(few)s, %(brokers)s, %(problems)s)
    ON CONFLICT (id) DO UPDATE SET
        asked_at = EXCLUDED.asked_at, answered_at = EXCLUDED.answered_at, silences = 0,
        few_answers = CASE WHEN EXCLUDED.few_answers = 0 THEN 0
                           WHEN state.asked_at > statement_timestamp() - %(row)s * interval '1 second'
                           THEN state.few_answers + 1 ELSE 1 END,
        brokers = EXCLUDED.brokers, problems = EXCLUDED.problems
"""


class _Answer(NamedTuple):
    """``brokers`` as "1 at host:port", those that the one that answered knows as alive; a line per problem."""

    brokers: list[str]
    problems: list[str]


class BrokerWatch:
    """Asks the brokers through one long-lived client and keeps the answer in the one row of ``BrokerState``."""

    def __init__(self) -> None:
        self._admin: AdminClient | None = None
        self._min_in_sync: dict[str, int] = {}
        self._settings_read_at = float("-inf")

    def look(self) -> None:
        """Ask once, for 3 s at most, or 6 s when the topics' settings are read too. Raises what the database raises."""
        # With its request a silent broker's connection ends: the next request goes to another.
        self._admin = self._admin or make_admin({"socket.timeout.ms": int(ANSWER_SECONDS * 1000)})
        try:
            answer = self._ask(self._admin)
        except KafkaException:
            self._keep(_SILENT, {})
        else:
            few = len(answer.brokers) < settings.KAFKA_BROKERS_EXPECTED
            brokers, problems = json.dumps(answer.brokers), json.dumps(answer.problems)
            self._keep(_ANSWERED, {"brokers": brokers, "problems": problems, "few": int(few)})
        finally:
            # Serves its log lines, which are kept until then.
            self._admin.poll(0)

    def close(self) -> None:
        """Disconnect from Kafka."""
        self._admin = None

    def _ask(self, admin: AdminClient) -> _Answer:
        found = admin.list_topics(timeout=ANSWER_SECONDS)
        brokers = [f"{broker.id} at {broker.host}:{broker.port}" for _, broker in sorted(found.brokers.items())]
        names = sorted(prefixed(name) for name in topics_of(settings.KAFKA_ROUTES))
        # A topic that is missing or may not be described has no partitions here: the alert `topic` names it.
        ours = {name: found.topics[name] for name in names if name in found.topics and found.topics[name].partitions}
        self._read_settings(ours)
        return _Answer(brokers, list(self._problems(ours)))

    def _read_settings(self, topics: Mapping[str, TopicMetadata]) -> None:
        if time.monotonic() - self._settings_read_at < _SETTINGS_SECONDS and topics.keys() <= self._min_in_sync.keys():
            return
        try:
            configs = topic_configs(topics, timeout=ANSWER_SECONDS)
        except ServiceUnavailable:
            # The metadata came: what was known of the settings is still the best guess.
            return
        for name, config in configs.items():
            self._min_in_sync[name] = 0 if isinstance(config, KafkaError) else int(config["min.insync.replicas"])
        self._settings_read_at = time.monotonic()

    def _problems(self, topics: Mapping[str, TopicMetadata]) -> Iterator[str]:
        for name, topic in topics.items():
            least = self._min_in_sync.get(name, 0)
            for partition in topic.partitions.values():
                if partition.leader < 0:
                    yield f"{name}[{partition.id}] has no leader"
                elif len(partition.isrs) < least:
                    yield f"{name}[{partition.id}] has {len(partition.isrs)} in-sync replicas and needs {least}"

    def _keep(self, query: str, values: Mapping[str, str | int]) -> None:
        with connection.cursor() as cursor:
            cursor.execute(query, {"row": _ROW_SECONDS, **values})
