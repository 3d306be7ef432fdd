"""Document 000: one line per coupon type, several types in parallel, over a request and a response topic."""

from __future__ import annotations

import json
import signal

from coupons.models import Coupon, IssueRequest
from demo.stories.client import Call, Reply
from demo.stories.rows import (
    decided,
    decision,
    outbox_row,
    result_row,
    user_coupon_of,
    user_coupons,
    wait_published,
)
from demo.stories.story import Scene, Story, make_coupon, roles
from demo.stories.topics import (
    is_event,
    is_of_request,
    position_of,
    wait_for_commit,
    wait_for_consumers,
    wait_for_owner,
)
from demo.stories.words import counted
from kafka_bridge.registry import ReceivedMessage

_REQUESTS, _RESPONSES = "coupon-issue-request", "coupon-issue-response"
_PATH = "/coupons/issue-async"
_TEN, _TWENTY, _FIXED = "DISCOUNT_10PERCENT", "DISCOUNT_20PERCENT", "FIXED_1000"
_ISSUERS, _THREADS = 3, 2


class Seed000(Story):
    """Three types of coupons on three partitions, each with a consumer of its own."""

    number = "000"
    roles = roles(issuers=_ISSUERS)

    def tell(self, scene: Scene) -> None:
        """Follow the three diagrams, then a duplicate, a sold-out coupon and a consumer that dies."""
        coupon = make_coupon(_TEN, 5, percent=10)
        make_coupon(_TWENTY, 5, percent=20)
        make_coupon(_FIXED, 5, won=1000)
        members = wait_for_consumers("issue", _ISSUERS * _THREADS)
        scene.narration.heading("the settings of the document")
        scene.narration.passage("병렬 처리", f"{len(members)} consumers in {_ISSUERS} processes share 6 partitions")
        self._one_request(scene, coupon)
        self._three_at_once(scene)
        self._three_types(scene)
        self._refusals(scene, coupon)
        self._a_consumer_dies(scene)

    def _one_request(self, scene: Scene, coupon: Coupon) -> None:
        say = scene.narration.arrow
        scene.narration.diagram(1)
        body = {"userId": 1, "couponType": _TEN}
        reply = scene.client.post(1, _PATH, body)
        scene.expect_status(reply, 202, f"POST {_PATH}")
        scene.expect(reply.body["status"] == "PENDING", f"the answer is {reply.text}")
        request_id = reply.request_id
        row = outbox_row(request_id)
        say("Client->>API: POST /coupons/issue-async", f"{json.dumps(body)}, answered in JSON")
        say("API->>Producer: sendCouponIssueRequest()", f"outbox row {row.id}: {row.topic}, key {_key(row.key)}")
        say("API-->>Client: 202 Accepted", f"requestId {request_id}, status PENDING")
        wait_published(request_id)
        message = scene.topics.message(_REQUESTS, is_event(request_id), f"request {request_id}")
        say("Producer->>Topic: 메시지 전송", f"{position_of(message)}, acknowledged by the broker")
        result = decision(request_id)
        member = wait_for_owner("issue", message)
        say(
            "Topic->>Consumer: 메시지 수신",
            f"partition {message.partition} belongs to {scene.consumer('issue', member)}",
        )
        say("Consumer->>Service: issueCoupon()", f"decided by {scene.decided_by(request_id)}")
        answer = result_row(request_id)
        scene.expect(result.status == "SUCCESS", f"request {request_id} ended {decided(result)}")
        transaction = scene.expect_one_transaction(
            request=result, user_coupon=user_coupon_of(result), stock=coupon, event=answer
        )
        coupon.refresh_from_db()
        say("Service->>DB: 쿠폰 발급 처리", f"transaction {transaction} wrote request, user coupon, stock and event")
        say("DB-->>Service: 쿠폰 생성 완료", f"user coupon {result.user_coupon_id}; {coupon.issued} of 5 issued")
        say(
            "Service-->>Consumer: 발급 결과",
            f"{decided(result)}; offset committed: {wait_for_commit('issue', message)}",
        )
        say("Consumer->>Producer: sendCouponIssueResponse()", f"outbox row {answer.id}: {answer.topic}")
        response = scene.topics.message(_RESPONSES, is_of_request(request_id), f"the result of request {request_id}")
        say("Producer->>Topic: 응답 메시지 전송", position_of(response))

    def _three_at_once(self, scene: Scene) -> None:
        say = scene.narration.arrow
        scene.narration.diagram(2)
        requests = self._ask(scene, [(2, _TEN), (3, _TEN), (4, _TEN)])
        messages = [self._message(scene, reply) for reply in requests]
        for number, reply in enumerate(requests, start=1):
            say(f"Client{number}->>Producer: 요청{number} ({_TEN})", f"202, request {reply.request_id}")
        partitions = {message.partition for message in messages}
        scene.expect(len(partitions) == 1, f"one coupon type is on the partitions {partitions}")
        in_order = sorted(messages, key=lambda message: message.offset)
        offsets = ", ".join(str(message.offset) for message in in_order)
        say("Producer->>Topic: 메시지 전송", f"all on {_REQUESTS}[{partitions.pop()}], offsets {offsets}, key {_TEN}")
        results = [self._decision(scene, message) for message in in_order]
        member = wait_for_owner("issue", in_order[0])
        say(
            "Topic->>Consumer: 순서대로 메시지 전달",
            f"all to {scene.consumer('issue', member)}, in the order of their offsets",
        )
        left = [result.remaining for result in results]
        scene.expect(
            left == sorted(left, key=lambda number: -(number or 0)) and len(set(left)) == 3,
            f"the stock left, in the order of the offsets, is {left}",
        )
        say("Consumer->>Consumer: 쿠폰 발급 처리 (순차적)", f"stock left after each, in that order: {left}")

    def _three_types(self, scene: Scene) -> None:
        say = scene.narration.arrow
        scene.narration.diagram(3)
        types = (_TEN, _TWENTY, _FIXED)
        requests = self._ask(scene, [(5, _TEN), (6, _TWENTY), (7, _FIXED)])
        messages = [self._message(scene, reply) for reply in requests]
        for number, (coupon_type, reply) in enumerate(zip(types, requests, strict=True), start=1):
            say(f"Client{number}->>Producer: 요청{number} ({coupon_type})", f"202, request {reply.request_id}")
        partitions = [message.partition for message in messages]
        scene.expect(len(set(partitions)) == 3, f"three coupon types are on the partitions {partitions}")
        say(
            "Producer->>Topic: 메시지 전송",
            f"partitions {', '.join(map(str, partitions))}: murmur2 of the key % 6 (drawn: 0, 1, 2)",
        )
        results = [self._decision(scene, message) for message in messages]
        owners = [wait_for_owner("issue", message) for message in messages]
        scene.expect(len({str(owner) for owner in owners}) == 3, "the three types do not have three consumers")
        for number, (coupon_type, owner, result) in enumerate(zip(types, owners, results, strict=True), start=1):
            say(
                f"Topic->>Consumer{number}: {coupon_type} 처리",
                f"{scene.consumer('issue', owner)}; decided by {scene.decided_by(result.request_id)}:"
                f" {decided(result)}",
            )

    def _refusals(self, scene: Scene, coupon: Coupon) -> None:
        scene.narration.heading("what the consumer refuses")
        for user_id, reason in ((1, "ALREADY_ISSUED"), (8, "SOLD_OUT")):
            (reply,) = self._ask(scene, [(user_id, _TEN)])
            result = self._decision(scene, self._message(scene, reply))
            scene.expect(result.reason == reason, f"request {result.request_id} ended {decided(result)}")
            response = scene.topics.message(_RESPONSES, is_of_request(result.request_id), "the result")
            coupons = counted(user_coupons(user_id, coupon.id), "coupon")
            scene.narration.passage(
                "발급 결과",
                f"user {user_id}: {decided(result)}; has {coupons} of this type; {position_of(response)}",
            )

    def _a_consumer_dies(self, scene: Scene) -> None:
        (before,) = self._ask(scene, [(9, _FIXED)])
        message = self._message(scene, before)
        self._decision(scene, message)
        holder = scene.decided_by(before.request_id)
        process = scene.processes[holder.split()[0]]
        pid, owner = process.pid, wait_for_owner("issue", message)
        scene.narration.heading(f"a consumer dies: kill -9 {holder}")
        process.send_signal(signal.SIGKILL)
        (reply,) = self._ask(scene, [(10, _FIXED)])
        after = self._message(scene, reply)
        result = self._decision(scene, after)
        heir = wait_for_owner("issue", after)
        scene.expect(result.status == "SUCCESS", f"request {result.request_id} ended {decided(result)}")
        scene.expect(str(heir) != str(owner), f"consumer {owner} is dead and still has {after}")
        scene.narration.passage(
            "컨슈머", f"pid {pid} had partition {message.partition} by {scene.consumer('issue', owner)}"
        )
        scene.narration.passage(
            "순서 보장",
            f"{after} waited, then {scene.consumer('issue', heir)} got the partition, and it was decided by"
            f" {scene.decided_by(reply.request_id)}: {decided(result)}",
        )

    def _ask(self, scene: Scene, asks: list[tuple[int, str]]) -> list[Reply]:
        calls = [Call(user_id, _PATH, {"userId": user_id, "couponType": name}) for user_id, name in asks]
        replies = scene.client.post_together(calls)
        for reply in replies:
            scene.expect_status(reply, 202, f"POST {_PATH}")
        return replies

    def _message(self, scene: Scene, reply: Reply) -> ReceivedMessage:
        return scene.topics.message(_REQUESTS, is_event(reply.request_id), f"request {reply.request_id}")

    def _decision(self, scene: Scene, message: ReceivedMessage) -> IssueRequest:
        """Wait for the decision of a request, which must be of this message."""
        assert message.event_id is not None
        row = decision(message.event_id)
        scene.expect((row.partition, row.offset) == (message.partition, message.offset), f"{row} is not of {message}")
        return row


def _key(key: bytes | memoryview | None) -> str:
    return bytes(key or b"").decode()
