from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from django.core.management.base import CommandError
from redis.exceptions import RedisError

from common.processes.lifecycle import StopFlag, check_database, check_redis, first_line
from common.processes.outages import is_transient
from coupons import coupon_audit
from coupons.coupon_audit import Trail, Trails
from coupons.status_rebuild import RESULT_TYPES, statuses_rebuild, statuses_rebuild_from
from kafka_bridge.client import check_kafka
from kafka_bridge.consuming.topic_reader import read_history
from kafka_bridge.operating.worker_command import WorkerCommand, record_command
from kafka_bridge.registry import topics_with_history
from orders.ranking.rebuild import Rebuilt, ranking_rebuild, ranking_rebuild_from
from orders.ranking.sales import EVENT_TYPES as ORDER_TYPES


class Command(WorkerCommand):
    help = (
        "Rebuilds the ranking and the cached statuses in Redis while the service runs, and prints a line per coupon."
        " With --from-topics the topics are also compared with PostgreSQL; the exit code is 1 if a coupon differs, as"
        " it does when a topic no longer has its oldest messages. Redis is written in any case: run it without"
        " --from-topics to restore the state of PostgreSQL."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--from-topics", action="store_true", help="from all messages on the topics instead of from PostgreSQL"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        self.needs = (check_database, check_redis, *([check_kafka] if options["from_topics"] else []))
        super().handle(*args, **options)

    def work(self, stop: StopFlag, **options: Any) -> None:
        record_command(
            action="views.rebuild", subject="ranking and statuses", after={"fromTopics": options["from_topics"]}
        )
        try:
            if options["from_topics"]:
                self._from_topics(stop)
            else:
                self._from_postgresql(stop)
        except Exception as error:
            if not is_transient(error) and not isinstance(error, RedisError):
                raise
            if not stop:
                raise CommandError(first_line(error)) from error
        if stop:
            self.stdout.write("stopped before the end; run it again")

    def _from_postgresql(self, stop: StopFlag) -> None:
        self.stdout.write(f"ranking: {_summary(ranking_rebuild(stop=stop))}")
        self.stdout.write(f"cached statuses: {statuses_rebuild(stop=stop)} results of the last day")
        if not stop:
            self._write_coupons(coupon_audit.decided())

    def _from_topics(self, stop: StopFlag) -> None:
        rebuilt = ranking_rebuild_from(read_history(topics_with_history(ORDER_TYPES), stop), stop=stop)
        self.stdout.write(f"ranking: {_summary(rebuilt)}, {rebuilt.unreadable} messages unreadable")
        before = coupon_audit.published()
        history = statuses_rebuild_from(read_history(topics_with_history(RESULT_TYPES), stop), stop=stop)
        if stop:
            return
        self.stdout.write(
            f"cached statuses: {history.written} results of the last day, {history.unreadable} messages unreadable"
        )
        after = coupon_audit.decided()
        different = coupon_audit.differing(history.trails, before=before, after=after)
        self._write_coupons(history.trails, {coupon_type: after[coupon_type] for coupon_type in different})
        if different:
            raise CommandError(f"{len(different)} coupons differ between the topics and PostgreSQL")

    def _write_coupons(self, trails: Trails, different: Mapping[str, Trail] | None = None) -> None:
        stock = coupon_audit.stock()
        for coupon_type in sorted(trails.keys() | stock.keys()):
            line = (
                f"coupon {coupon_type or '(none)'}: {trails[coupon_type]}; {stock.get(coupon_type, 'no such coupon')}"
            )
            if different is not None:
                other = different.get(coupon_type)
                line += "; PostgreSQL agrees" if other is None else f"; PostgreSQL DIFFERS: {other}"
            self.stdout.write(line)


def _summary(rebuilt: Rebuilt) -> str:
    return f"{rebuilt.events} events of orders paid from {rebuilt.first_day} to {rebuilt.last_day}"
