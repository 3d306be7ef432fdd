"""Document 001: a check in Redis in front of Kafka, a consumer group of three, and the old Redis worker beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from uuid import UUID

from django.conf import settings

from common.redis_client import redis_connection
from coupons.models import Coupon, IssueRequest, RolloutChange
from coupons.redis_queue import TRANSPORT
from coupons.redis_queue.queue import QUEUE
from coupons.rollout import rollout_set, uses_redis_queue
from demo.stories.client import Reply
from demo.stories.receiver import Receiver
from demo.stories.redis_commands import RedisObserver
from demo.stories.rows import (
    decided,
    decision,
    failing_inserts,
    outbox_row,
    refusals,
    refused,
    user_coupon_of,
    user_coupons,
    wait_published,
)
from demo.stories.story import Scene, Story, make_coupon, roles
from demo.stories.topics import (
    committed_offset,
    is_event,
    position_of,
    publish,
    wait_for_commit,
    wait_for_consumers,
    wait_for_owner,
)
from demo.stories.words import counted
from devstack import wait_until
from kafka_bridge.models import OutboxMessage
from kafka_bridge.registry import ReceivedMessage

_TOPIC, _DEAD_LETTERS = "coupon-issue-requests", "coupon-issue.DLT"
_ALERTS = "/alerts"
_SECONDS = 30.0
_FAILING_USER = 13


class Seed001(Story):
    """A gate in Redis, then Kafka; the worker of the time before carries half of the users of one coupon."""

    number = "001"
    roles = roles("effects", "housekeeper", "worker")

    def settings(self, receiver: Receiver) -> dict[str, str]:
        return {"ALERT_WEBHOOK_URL": receiver.url(_ALERTS)}

    def tell(self, scene: Scene) -> None:
        """Follow both diagrams, then three tries and a dead letter with compensation, and both transports at once."""
        summer = make_coupon("SUMMER_SALE", 3, admission="gate", percent=10)
        autumn = make_coupon("AUTUMN_SALE", 10, admission="gate", percent=20)
        rollout_set(RolloutChange(flag="issue-worker-WINTER_SALE", percent=50, reason="the demo", actor="demo"))
        winter = make_coupon("WINTER_SALE", 10, admission="gate", won=1000)
        members = wait_for_consumers("issue", 3)
        scene.narration.heading("the settings of the document")
        scene.narration.passage("Consumer Count: 3 (파티션 수와 동일)", f"{len(members)} consumers share 3 partitions")
        self._auto_commit_is_refused(scene)
        with RedisObserver() as commands:
            scene.narration.diagram(1)
            message = self._admitted(scene, commands, summer)
            self._same_message_again(scene, message)
            self._refused(scene, commands, summer)
            self._three_tries(scene, autumn)
            self._the_whole_way(scene, commands, autumn)
            self._both_transports(scene, commands, winter)

    def _auto_commit_is_refused(self, scene: Scene) -> None:
        env = {**os.environ, "KAFKA_CONSUMER_CONFIG": '{"enable.auto.commit": true}'}
        argv = [sys.executable, "manage.py", "check"]
        ended = subprocess.run(argv, env=env, cwd=settings.BASE_DIR, capture_output=True, text=True, check=False)
        scene.expect(ended.returncode, "a start with enable.auto.commit succeeds")
        reason = ended.stderr.strip().splitlines()[-1]
        scene.narration.passage("auto-commit (1초 간격)", f"refused at the start: {reason}")

    def _admitted(self, scene: Scene, commands: RedisObserver, coupon: Coupon) -> ReceivedMessage:
        say = scene.narration.arrow
        reply = _ask(scene, coupon, 1)
        scene.expect_status(reply, 202, "the first request")
        request_id, gate = reply.request_id, f"gate:{{{coupon.id}}}"
        say("U->>A: 쿠폰 발급 요청 (userId, couponId)", f"POST {_path(coupon)} of user 1")
        say("A->>R: 중복 발급 체크 (SISMEMBER)", f"one Lua call; in it {commands.wait_for(f'HMGET {gate} 1')}")
        stored = commands.wait_for("HSET", gate, str(request_id))
        say("R-->>A: 중복 여부 응답", "user 1 had no entry: the same call stored one")
        say("A->>R: 재고 차감 (DECR)", _taken(scene, commands, coupon))
        sequence = reply.body["sequence"]
        scene.expect(sequence == 1, f"the first request has the sequence {sequence}")
        say("R-->>A: 차감 성공", f"sequence {sequence}")
        say("A->>R: 발급 기록 저장 (SADD)", stored)
        row = outbox_row(request_id)
        message = scene.topics.message(_TOPIC, is_event(request_id), f"request {request_id}")
        key = (message.key or b"").decode()
        scene.expect(key == f"coupon:{coupon.id}", f"the key is {key}")
        say("A->>K: CouponIssueEvent 발행", f"outbox row {row.id}, then {position_of(message)}")
        say("A-->>U: 발급 진행중 응답 (requestId)", f"202, requestId {request_id}, status {reply.body['status']}")
        result = decision(request_id)
        member = wait_for_owner("issue", message)
        say(
            "K->>C: 이벤트 전달 (파티션 키: couponId)",
            f"{message} to {scene.consumer('issue', member)}, decided by {scene.decided_by(request_id)}",
        )
        scene.expect(result.status == "SUCCESS", f"request {request_id} ended {decided(result)}")
        say("C->>D: UserCoupon 저장 (INSERT)", _written(scene, result))
        line = scene.logged("issuer", str(request_id), "SUCCESS")
        scene.narration.passage(
            "발급 완료 로깅", f"issuer.log: {line['event']}, requestId {line['requestId']}, {line['status']}"
        )
        return message

    def _same_message_again(self, scene: Scene, message: ReceivedMessage) -> None:
        assert message.event_id is not None
        scene.narration.heading("diagram 1 goes on: the same message is published again")
        first = decision(message.event_id)
        wait_for_commit("issue", message)
        publish(_TOPIC, message.value or b"", key=message.key or b"", headers=dict(message.headers))
        again = scene.topics.message(
            _TOPIC, lambda one: one.event_id == message.event_id and one.offset > message.offset, "the second copy"
        )
        wait_for_commit("issue", again)
        second, coupons = decision(message.event_id), user_coupons(1, first.coupon_id or 0)
        scene.expect((second.offset, coupons) == (message.offset, 1), f"the copy at {again} was decided again")
        scene.narration.arrow(
            "C->>D: 중복 발급 체크 (SELECT)",
            f"the same message again at {again}: the result stays that of {message},"
            f" user 1 has {counted(coupons, 'coupon')}",
        )
        scene.narration.passage(
            "중복 메시지 스킵", f"offset committed: {committed_offset('issue', _TOPIC, again.partition)}"
        )

    def _refused(self, scene: Scene, commands: RedisObserver, coupon: Coupon) -> None:
        say = scene.narration.arrow
        scene.narration.heading("diagram 1 goes on: user 1 asks again")
        rows = OutboxMessage.objects.count()
        duplicate = _ask(scene, coupon, 1)
        scene.expect_status(duplicate, 409, "the same user again")
        scene.expect(OutboxMessage.objects.count() == rows, "a request that the gate refused is in the outbox")
        say(
            "A-->>U: 이미 발급된 쿠폰 응답",
            f"409 {duplicate.body['code']}, known in Redis: no outbox row, so no message for Kafka",
        )
        scene.narration.heading("diagram 1 goes on: users 2 and 3 take the last units, then user 4 asks")
        for user_id in (2, 3):
            scene.expect_status(_ask(scene, coupon, user_id), 202, f"the request of user {user_id}")
        held = _held(coupon)
        sold_out = _ask(scene, coupon, 4)
        scene.expect_status(sold_out, 409, "the request after the last unit")
        say(
            "R-->>A: 차감 실패 (재고 부족)",
            f"{held} of 3 units held; {commands.wait_for(f'HMGET gate:{{{coupon.id}}} 4')}",
        )
        scene.expect(_held(coupon) == held, "a refusal changed the gate")
        say("A->>R: 재고 복원 (INCR)", f"not needed: the one Lua call took nothing; still {held} units held")
        say("A-->>U: 품절 응답", f"409 {sold_out.body['code']}")

    def _three_tries(self, scene: Scene, coupon: Coupon) -> None:
        say, passage = scene.narration.arrow, scene.narration.passage
        scene.narration.heading(f"diagram 1 goes on: PostgreSQL refuses the coupon of user {_FAILING_USER}")
        with failing_inserts(_FAILING_USER):
            reply = _ask(scene, coupon, _FAILING_USER)
            scene.expect_status(reply, 202, f"the request of user {_FAILING_USER}")
            entry = redis_connection().hget(f"gate:{{{coupon.id}}}", str(_FAILING_USER))
            result = decision(reply.request_id)
            times = refusals()
        scene.expect(len(times) == settings.CONSUMER_MAX_ATTEMPTS, f"the consumer tried otherwise: {refused(times)}")
        scene.expect(result.reason == "ERROR", f"request {reply.request_id} ended {decided(result)}")
        passage("3회 재시도 후 DLQ로 이동", f"{refused(times)}: no further try")
        letter = scene.topics.message(_DEAD_LETTERS, is_event(reply.request_id), f"request {reply.request_id}")
        origin = (letter.header("x-original-topic") or b"").decode()
        error = (letter.header("x-error-message") or b"").decode().splitlines()[0]
        say("C->>K: DLT로 메시지 이동 (coupon-issue.DLT)", f"{position_of(letter)}, from {origin}: {error}")
        read = wait_for_commit("dead-letters", letter)
        alert = scene.receiver.wait_for(
            _ALERTS, lambda call: json.loads(call.body)["rule"] == "request-dead-lettered", "the alert"
        )
        passage("DltMonitoringConsumer", f"group dead-letters has read {_DEAD_LETTERS} up to {read}")
        passage("관리자 알림", f"posted to the webhook, answered {alert.status}: {json.loads(alert.body)['summary']}")
        self._compensated(scene, coupon, reply.request_id, entry)

    def _compensated(self, scene: Scene, coupon: Coupon, request_id: UUID, entry: bytes | None) -> None:
        def is_released() -> bool:
            return redis_connection().hget(f"gate:{{{coupon.id}}}", str(_FAILING_USER)) is None

        wait_until(is_released, _SECONDS, f"the unit of user {_FAILING_USER} is not released")
        scene.expect(entry is not None, f"the gate had no entry of user {_FAILING_USER}")
        had = (entry or b"").decode()
        scene.narration.passage(
            "Redis 상태 복구", f"the entry {had} of user {_FAILING_USER} is gone; {counted(_held(coupon), 'unit')} held"
        )
        status = scene.client.get(_FAILING_USER, f"/api/v1/issue-requests/{request_id}").body
        scene.expect(status["status"] == "FAILED", f"the status is {status}")
        scene.narration.passage("실패 상태 저장", f"GET the status: {status['status']} {status['reason']}")

    def _the_whole_way(self, scene: Scene, commands: RedisObserver, coupon: Coupon) -> None:
        say = scene.narration.arrow
        scene.narration.diagram(2)
        reply = _ask(scene, coupon, 20)
        scene.expect_status(reply, 202, "the request of user 20")
        request_id, gate = reply.request_id, f"gate:{{{coupon.id}}}"
        say("User->>API: POST /coupons/{id}/issue-async", f"POST {_path(coupon)} of user 20")
        say("API->>Redis: 1. 빠른 검증 (중복/재고)", commands.wait_for(f"HMGET {gate} 20"))
        say("Redis-->>API: 검증 완료", f"sequence {reply.body['sequence']}")
        stored = commands.wait_for("HSET", gate, str(request_id))
        say("API->>Redis: 2. 재고 차감 (원자적)", _taken(scene, commands, coupon))
        say("API->>Redis: 3. 발급 표시 추가", stored)
        say("API->>Kafka: 4. 이벤트 발행", f"outbox row {outbox_row(request_id).id}, committed before the answer")
        say("API-->>User: requestId 응답", f"202, requestId {request_id}")
        wait_published(request_id)
        message = scene.topics.message(_TOPIC, is_event(request_id), f"request {request_id}")
        say("Kafka-->>API: ACK", f"the relay has the acknowledgement of {position_of(message)}")
        result = decision(request_id)
        member = wait_for_owner("issue", message)
        say(
            "Kafka->>Consumer: 5. 메시지 소비",
            f"{scene.consumer('issue', member)}, decided by {scene.decided_by(request_id)}",
        )
        say("Consumer->>DB: 6. 최종 발급 처리", _written(scene, result))
        commands.wait_for("SET", f"status:{request_id}")
        cached = redis_connection().get(f"status:{request_id}")
        scene.expect(cached and b'"SUCCESS"' in cached, f"Redis has the status {cached!r}")
        say("Consumer->>Redis: 7. 상태 업데이트", f"SET status:{request_id}: SUCCESS, after the commit")

    def _both_transports(self, scene: Scene, commands: RedisObserver, coupon: Coupon) -> None:
        scene.narration.heading("the old worker and Kafka side by side")
        by_queue: Mapping[bool, int] = {uses_redis_queue(user_id, 500): user_id for user_id in range(40, 80)}
        old = _ask(scene, coupon, by_queue[True])
        scene.expect_status(old, 202, "the request of a user of the worker")
        new = _ask(scene, coupon, by_queue[False])
        scene.expect_status(new, 202, "the request of a user of Kafka")
        row = outbox_row(old.request_id)
        scene.expect(row.topic == TRANSPORT, f"the request of user {by_queue[True]} goes to {row.topic}")
        pushed = commands.wait_for("RPUSH", QUEUE, str(old.request_id))
        done = decision(old.request_id)
        # A request that Kafka has not carried has no partition.
        scene.expect(
            done.partition == -1, f"request {old.request_id} came by partition {done.partition} of {done.topic}"
        )
        scene.narration.passage("CouponIssueWorker", f"user {by_queue[True]}: {pushed}; the worker: {decided(done)}")
        message = scene.topics.message(_TOPIC, is_event(new.request_id), f"request {new.request_id}")
        result = decision(new.request_id)
        scene.narration.passage(
            "기존 Worker와 Kafka Consumer 병렬 운영",
            f"user {by_queue[False]}: {position_of(message)}; {decided(result)}",
        )
        scene.expect(not scene.topics.found(_TOPIC, is_event(old.request_id)), "Kafka has a request of the worker")
        scene.narration.passage("Feature Flag", f"issue-worker-{coupon.coupon_type} is at 50 %; both end in one table")


def _path(coupon: Coupon) -> str:
    return f"/coupons/{coupon.id}/issue-async"


def _ask(scene: Scene, coupon: Coupon, user_id: int) -> Reply:
    return scene.client.post(user_id, _path(coupon), {"userId": user_id})


def _written(scene: Scene, result: IssueRequest) -> str:
    """Say what a request got, by the transaction that wrote it. Raises StoryFailed if the rows are of several."""
    transaction = scene.expect_one_transaction(request=result, user_coupon=user_coupon_of(result))
    return f"{decided(result)}; transaction {transaction} wrote the user coupon and the result"


def _taken(scene: Scene, commands: RedisObserver, coupon: Coupon) -> str:
    """Say how the first user took a unit of the gate. Raises StoryFailed unless the gate holds one unit now."""
    read, held = commands.wait_for("HLEN", f"gate:{{{coupon.id}}}"), _held(coupon)
    scene.expect(held == 1, f"the gate of {coupon.coupon_type} holds {held} units")
    return (
        f"{read} only reads; the HSET of the same call takes the unit. HLEN is {held + 1} now: the field sequence and"
        f" {counted(held, 'unit')} of {coupon.total_quantity}"
    )


def _held(coupon: Coupon) -> int:
    """Return the units that the gate holds: its entries without the field of the sequence."""
    return int(redis_connection().hlen(f"gate:{{{coupon.id}}}")) - 1
