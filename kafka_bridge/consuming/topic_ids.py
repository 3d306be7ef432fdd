"""Which topic a name means. A topic that was deleted and made anew has its name and another id.

Offsets of the old topic mean nothing in the new one: a consumer that went on from them would skip what is beneath, or
read nothing at all. So they are committed with the id of their topic, and a consumer joins its group again when an id
has changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from typing import Any

from django.conf import settings

from common.processes.lifecycle import first_line

from ..client import (
    BEGINNING,
    AdminClient,
    Consumer,
    KafkaException,
    TopicCollection,
    TopicPartition,
    make_admin,
)

logger = logging.getLogger(__name__)

_ASK_SECONDS = 5.0
# A consumer that has just got partitions waits for the answers at most so long.
_WAIT_SECONDS = 5.0


class TopicIds:
    """The ids of the topics of one consumer, as they were when it was first given partitions."""

    def __init__(self, topics: Collection[str], name: str) -> None:
        """``topics`` have the prefix; ``name`` is the subscription's, for the log."""
        self._topics = sorted(topics)
        self._name = name
        self._asked: Mapping[str, Future[Any]] = {}
        self._ask_at = 0.0
        self.forget()

    def forget(self) -> None:
        """Forget the ids: the consumer gives its partitions up."""
        self._known: dict[str, str] = {}
        self._is_changed = False

    def of(self, topic: str) -> str:
        """Return the id of a topic, empty if it is not known."""
        return self._known.get(topic, "")

    def correct(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> bool:
        """Give newly assigned partitions whose topic was made anew since their last commit the beginning as offset.

        Returns whether there are any. Without an answer of the brokers all go on from their committed offsets.
        """
        try:
            self._compare(_ids(self._describe(), _WAIT_SECONDS))
            committed = consumer.committed(list(partitions), timeout=_WAIT_SECONDS) if partitions else []
        except Exception as error:
            logger.warning("%s: whether topics were made anew is not known: %s", self._name, first_line(error))
            return False
        anew = {
            (item.topic, item.partition)
            for item in committed
            if item.metadata and self.of(item.topic) not in ("", item.metadata)
        }
        for item in partitions:
            if (item.topic, item.partition) in anew:
                item.offset = BEGINNING
                logger.warning(
                    "%s: %s[%d] is a new topic, read from its beginning", self._name, item.topic, item.partition
                )
        return bool(anew)

    def has_changed(self) -> bool:
        """Whether a topic was made anew, as far as the brokers answer. Asks every 5 s, and waits for nothing."""
        with suppress(KafkaException):
            self._ask_and_learn()
        return self._is_changed

    def _ask_and_learn(self) -> None:
        if self._asked and all(answer.done() for answer in self._asked.values()):
            answered, self._asked = self._asked, {}
            self._compare(_ids(answered, 0.0))
        elif not self._asked and time.monotonic() >= self._ask_at:
            self._asked = self._describe()

    def _compare(self, now: Mapping[str, str]) -> None:
        """Learn ids. One that has changed is not learned: offsets of partitions that are held would get it."""
        for topic, topic_id in now.items():
            if self._known.setdefault(topic, topic_id) != topic_id:
                self._is_changed = True

    def _describe(self) -> Mapping[str, Future[Any]]:
        self._ask_at = time.monotonic() + _ASK_SECONDS
        admin = _admin(settings.KAFKA_BOOTSTRAP_SERVERS)
        # For what it has to log.
        admin.poll(0)
        return admin.describe_topics(TopicCollection(self._topics), request_timeout=_WAIT_SECONDS)


@cache
def _admin(bootstrap_servers: str) -> AdminClient:
    """One for all consumers of the process: each has a thread for every broker."""
    return make_admin()


def _ids(answers: Mapping[str, Future[Any]], seconds: float) -> dict[str, str]:
    """Return the ids that were answered; a topic that does not exist, or is not answered, has none."""
    found: dict[str, str] = {}
    for topic, answer in answers.items():
        with suppress(KafkaException, TimeoutError):
            found[topic] = str(answer.result(seconds).topic_id)
    return found
