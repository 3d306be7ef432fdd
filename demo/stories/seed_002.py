"""Document 002: coupons decided one after the other, and one consumer group for three effects of a paid order."""

from __future__ import annotations

import json

from coupons.models import Coupon, IssueRequest
from demo.stories.client import Reply
from demo.stories.receiver import Receiver
from demo.stories.rows import (
    decided,
    decision,
    outbox_row,
    result_row,
    transaction_of,
    user_coupon_of,
    user_coupons,
    wait_handled,
    wait_published,
)
from demo.stories.shopping import buy, completed_message, make_product
from demo.stories.story import Scene, Story, make_coupon, roles
from demo.stories.topics import (
    committed_offset,
    is_event,
    position_of,
    wait_for_commit,
    wait_for_consumers,
    wait_for_owner,
)
from demo.stories.words import counted
from kafka_bridge.models import ProcessedEvent
from kafka_bridge.registry import ReceivedMessage, groups
from orders.models import Product

_COUPONS, _ORDERS = "coupon-publish-request", "order-completed"
_ALIMTALK, _PLATFORM, _MONITORING = "/alimtalk", "/analytics", "/monitoring"
_EFFECTS = {"notification": _ALIMTALK, "data-platform": _PLATFORM, "monitoring": _MONITORING}
_CONSUMERS = 3


class Seed002(Story):
    """A coupon of one unit, a paid order with three effects in one group, and AlimTalk that fails for a while."""

    number = "002"
    roles = roles("effects")

    def settings(self, receiver: Receiver) -> dict[str, str]:
        return {
            "ALIMTALK_URL": receiver.url(_ALIMTALK),
            "ALIMTALK_KEY": "demo",
            "DATA_PLATFORM_URL": receiver.url(_PLATFORM),
            "ORDER_MONITORING_URL": receiver.url(_MONITORING),
        }

    def tell(self, scene: Scene) -> None:
        """Follow both diagrams, then the effects while AlimTalk does not answer."""
        coupon = make_coupon("COUPON_002", 1, percent=10)
        (member,) = wait_for_consumers("issue", 1)
        scene.narration.heading("the settings of the document")
        scene.narration.passage(
            "`coupon-consumer-group`", f"{scene.consumer('issue', member)} has the 3 partitions of {_COUPONS}"
        )
        self._a_coupon(scene, coupon)
        self._no_coupon(scene, coupon)
        product = make_product()
        self._a_payment(scene, product)
        self._alimtalk_is_away(scene, product)

    def _a_coupon(self, scene: Scene, coupon: Coupon) -> None:
        say = scene.narration.arrow
        scene.narration.diagram(1)
        reply, message, result = self._ask(scene, coupon, 1)
        row, answer = outbox_row(reply.request_id), result_row(reply.request_id)
        say("사용자->>컨트롤러: POST /api/v1/users/{userId}/coupons/{couponId}/issue", f"POST {_path(coupon, 1)}")
        say("컨트롤러->>CouponEventPublisher: publishCouponRequest(request)", f"outbox row {row.id}: {row.topic}")
        say("CouponEventPublisher-->>컨트롤러: 발행 완료", f"row committed by transaction {transaction_of(row)}")
        say('컨트롤러-->>사용자: "요청 접수됨" 즉시 응답', f"202, requestId {reply.request_id}, {reply.body['status']}")
        say("CouponEventPublisher->>Kafka: 메시지 발행 (키: couponId)", position_of(message))
        wait_published(reply.request_id)
        say("Kafka-->>CouponEventPublisher: 발행 확인", "the relay has the acknowledgement of the broker")
        member = wait_for_owner("issue", message)
        say("Kafka->>CouponEventConsumer: 메시지 수신", f"{message} to {scene.consumer('issue', member)}")
        say("CouponEventConsumer->>CouponService: 쿠폰 발급 처리", scene.decided_by(reply.request_id))
        coupon.refresh_from_db()
        scene.expect(result.status == "SUCCESS", f"request {reply.request_id} ended {decided(result)}")
        transaction = scene.expect_one_transaction(
            request=result, user_coupon=user_coupon_of(result), stock=coupon, event=answer
        )
        say("CouponService->>데이터베이스: 트랜잭션 시작", f"transaction {transaction}")
        say("CouponService->>데이터베이스: 쿠폰 조회", f"coupon {coupon.id}, updated by transaction {transaction}")
        say("데이터베이스-->>CouponService: 쿠폰 정보", f"stock {coupon.total_quantity}")
        say("CouponService->>데이터베이스: UserCoupon 생성", f"user coupon {result.user_coupon_id}")
        say("CouponService->>데이터베이스: 쿠폰 발급 수량 증가", f"issued {coupon.issued} of {coupon.total_quantity}")
        say(
            "CouponService->>데이터베이스: 트랜잭션 커밋",
            f"transaction {transaction} wrote request, user coupon, stock and event",
        )
        say("CouponService-->>CouponEventConsumer: 발급 성공", decided(result))
        read = wait_for_commit("issue", message)
        # The first of the two is that of the refusal, below.
        say("CouponEventConsumer-->>Kafka: 메시지 처리 완료", f"offset {read} committed", occurrence=2)

    def _no_coupon(self, scene: Scene, coupon: Coupon) -> None:
        say = scene.narration.arrow
        scene.narration.heading("diagram 1 goes on: user 1 asks again")
        reply, message, result = self._ask(scene, coupon, 1)
        scene.expect(result.reason == "ALREADY_ISSUED", f"request {reply.request_id} ended {decided(result)}")
        say("CouponService->>데이터베이스: 중복 발급 확인", f"user 1 again, request {reply.request_id}")
        coupons = counted(user_coupons(1, coupon.id), "coupon")
        say("데이터베이스-->>CouponService: 중복 여부", f"{result.reason}: user 1 has {coupons} of this type")
        scene.narration.heading("diagram 1 goes on: user 2 asks, after the last unit")
        sold_out, message, result = self._ask(scene, coupon, 2)
        issued = coupon.issued
        coupon.refresh_from_db()
        scene.expect(result.reason == "SOLD_OUT", f"request {sold_out.request_id} ended {decided(result)}")
        scene.expect((user_coupons(2, coupon.id), coupon.issued) == (0, issued), "a refused request got a coupon")
        say(
            "CouponService->>데이터베이스: 트랜잭션 롤백",
            f"nothing to roll back: no coupon of user 2, issued stays {coupon.issued}; the refusal is a row",
        )
        say("CouponService-->>CouponEventConsumer: 발급 실패", f"user 2: {decided(result)}")
        read = wait_for_commit("issue", message)
        say("CouponEventConsumer-->>Kafka: 메시지 처리 완료", f"offset {read} committed", occurrence=1)

    def _a_payment(self, scene: Scene, product: Product) -> None:
        say = scene.narration.arrow
        members = wait_for_consumers("notification", _CONSUMERS)
        scene.narration.diagram(2)
        ids = {groups()[name].group_id for name in _EFFECTS}
        scene.expect(len(ids) == 1, f"the three effects have the group ids {ids}")
        scene.narration.passage("`order-consumer-group`", f"{len(members)} consumers for {', '.join(_EFFECTS)}")
        paid = buy(scene, product, user_id=1)
        row = outbox_row(paid.event_id)
        transaction = scene.expect_one_transaction(order=paid.order, event=row)
        say("사용자->>PaymentService: 결제 처리 요청", f"POST /api/v1/orders/{paid.order.id}/pay")
        say("PaymentService->>PaymentService: 결제 처리 (트랜잭션)", f"{paid.order.status}, transaction {transaction}")
        say("PaymentService->>OrderEventPublisher: OrderCompletedEvent 발행", f"outbox row {row.id}: {row.event_type}")
        say("OrderEventPublisher-->>PaymentService: 발행 완료", f"the row is of transaction {transaction} too")
        say("PaymentService-->>사용자: 결제 완료 응답", f"{paid.reply.status} {paid.reply.body['status']}")
        message = completed_message(scene, _ORDERS, paid)
        say("OrderEventPublisher->>Kafka: 메시지 발행 (키: orderId)", position_of(message))
        wait_published(paid.event_id)
        say("Kafka-->>OrderEventPublisher: 발행 확인", "the relay has the acknowledgement of the broker")
        member = wait_for_owner("notification", message)
        say("Kafka->>OrderEventConsumer: 메시지 수신", f"{message} to {scene.consumer('notification', member)}")
        steps = {"notification": "알림톡 발송", "data-platform": "데이터 분석 업데이트", "monitoring": "모니터링 알림"}
        for name, text in steps.items():
            call = scene.receiver.wait_for(
                _EFFECTS[name], lambda call: call.key == str(paid.event_id), f"{name}'s call"
            )
            wait_handled(name, paid.event_id)
            said = json.loads(call.body).get("templateCode") or f"order {json.loads(call.body)['orderId']}"
            say(f"OrderEventConsumer->>외부시스템: {text}", f"POST {call.path}: {said}, answered {call.status}")
        read = wait_for_commit("monitoring", message)
        say("OrderEventConsumer-->>Kafka: 메시지 처리 완료", f"offset {read} committed, after the three effects")

    def _alimtalk_is_away(self, scene: Scene, product: Product) -> None:
        scene.narration.heading("AlimTalk is away: the price of one group for three effects")
        scene.receiver.answers[_ALIMTALK] = 503
        paid = buy(scene, product, user_id=2)
        message = completed_message(scene, _ORDERS, paid)
        refused = scene.receiver.wait_for(_ALIMTALK, lambda call: call.key == str(paid.event_id), "the notice")
        waits = committed_offset("notification", _ORDERS, message.partition)
        scene.expect(waits <= message.offset, f"offset {waits} was committed while AlimTalk is away")
        others = [path for path in (_PLATFORM, _MONITORING) if scene.receiver.to(path, str(paid.event_id))]
        scene.expect(not others, f"the effects behind AlimTalk have called {others}")
        scene.narration.passage(
            "알림톡 발송",
            f"answered {refused.status}: {message} waits, offset committed is {waits}; the two other effects wait too",
        )
        scene.receiver.answers.clear()
        for name, path in _EFFECTS.items():
            wait_handled(name, paid.event_id)
            done = [call for call in scene.receiver.to(path, str(paid.event_id)) if call.status == 200]
            scene.expect(len(done) == 1, f"{name} was done {len(done)} times")
        read = wait_for_commit("notification", message)
        rows = ProcessedEvent.objects.filter(event_id=paid.event_id, consumer_group__in=_EFFECTS).count()
        scene.narration.passage(
            "메시지 처리 완료", f"AlimTalk is back: {rows} effects, each once; offset {read} committed"
        )

    def _ask(self, scene: Scene, coupon: Coupon, user_id: int) -> tuple[Reply, ReceivedMessage, IssueRequest]:
        reply = scene.client.post(user_id, _path(coupon, user_id), {})
        scene.expect_status(reply, 202, f"POST {_path(coupon, user_id)}")
        message = scene.topics.message(_COUPONS, is_event(reply.request_id), f"request {reply.request_id}")
        scene.expect((message.key or b"").decode() == str(coupon.id), f"the key of {message} is {message.key!r}")
        return reply, message, decision(reply.request_id)


def _path(coupon: Coupon, user_id: int) -> str:
    return f"/api/v1/users/{user_id}/coupons/{coupon.id}/issue"
