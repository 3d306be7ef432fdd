"""Document 003: payments and coupons on three brokers, units reserved by the request, one dead-letter topic."""

from __future__ import annotations

import json
import signal

from django.conf import settings

from coupons.models import Coupon, IssueRequest, Reservation
from demo.stories.client import Call
from demo.stories.receiver import Receiver
from demo.stories.rows import (
    decided,
    decision,
    failing_inserts,
    outbox_row,
    refusals,
    refused,
    user_coupon_of,
    wait_handled,
    wait_published,
)
from demo.stories.shopping import buy, completed_message, make_product
from demo.stories.story import Scene, Story, make_coupon, roles
from demo.stories.topics import (
    OBSERVE_SECONDS,
    is_event,
    position_of,
    publish,
    replicas_of,
    setting_of,
    wait_for_commit,
    wait_for_consumers,
    wait_for_owner,
)
from devstack import DevstackError, Part, Stack, wait_until
from kafka_bridge.registry import ReceivedMessage, prefixed
from orders.models import StoredOrder

_COUPONS, _ORDERS, _DEAD_LETTERS = "coupon-topic", "trace-topic", "DLQ-topic"
_ALIMTALK = "/alimtalk"
_BROKERS = 3
_FAILING_USER = 13


class Seed003(Story):
    """A payment and its two listeners, a reserved coupon, a dead letter, and a broker that dies."""

    number = "003"
    roles = roles("effects")

    def settings(self, receiver: Receiver) -> dict[str, str]:
        return {"ALIMTALK_URL": receiver.url(_ALIMTALK), "ALIMTALK_KEY": "demo"}

    def tell(self, scene: Scene) -> None:
        """Follow both diagrams, then the last unit, a duplicate, four tries and a killed broker."""
        coupon = make_coupon("COUPON_003", 6, admission="reserve", percent=10)
        last = make_coupon("LAST_UNIT", 1, admission="reserve", won=1000)
        leader, replicas, in_sync = replicas_of(_COUPONS, 0)
        scene.expect(len(in_sync) == _BROKERS, f"{_COUPONS}[0] has the in-sync replicas {in_sync}")
        scene.narration.heading("the settings of the document")
        scene.narration.passage("replicas=3", f"{_COUPONS}[0]: replicas {replicas}, in sync {in_sync}, leader {leader}")
        least = setting_of(_COUPONS, "min.insync.replicas")
        scene.expect(least == str(_BROKERS - 1), f"min.insync.replicas of {_COUPONS} is {least}")
        scene.narration.passage("min.insync.replicas", f"{least}: the setting of {_COUPONS}, read from the brokers")
        members = wait_for_consumers("issue", 3)
        scene.narration.passage("listener concurrency", f"{len(members)} consumers share 3 partitions of {_COUPONS}")
        self._a_payment(scene)
        self._a_coupon(scene, coupon)
        self._one_unit_for_two(scene, last)
        self._a_dead_letter(scene, coupon)
        self._a_broker_dies(scene, coupon)

    def _a_payment(self, scene: Scene) -> None:
        say = scene.narration.arrow
        scene.narration.diagram(1)
        paid = buy(scene, make_product(), user_id=1)
        row = outbox_row(paid.event_id)
        transaction = scene.expect_one_transaction(order=paid.order, event=row)
        say("Client->>PaymentService: 결제 요청", f"POST /api/v1/orders/{paid.order.id}/pay: {paid.reply.status}")
        say("PaymentService->>OrderRepository: 주문 상태 변경", f"{paid.order.status}, in transaction {transaction}")
        say(
            "PaymentService->>ApplicationEventPublisher: OrderCreatedEvent 발행",
            f"outbox row {row.id} of the same transaction: {row.event_type}",
        )
        wait_published(paid.event_id)
        message = completed_message(scene, _ORDERS, paid)
        say("ApplicationEventPublisher->>Kafka: 메시지 발행", f"{position_of(message)}, acknowledged by the brokers")
        for group in ("data-platform", "notification"):
            wait_handled(group, paid.event_id)
        say("Kafka-->>OrderListener: 주문 정보 처리", f"group data-platform has handled {message}")
        say("Kafka-->>AlertListener: 알림 전송", f"group notification has handled {message}")
        stored = StoredOrder.objects.get(order_id=paid.order.id)
        read = wait_for_commit("data-platform", message)
        say("OrderListener->>OrderRepository: DB 저장 및 ack", f"row of order {stored.order_id}; ack: offset {read}")
        call = scene.receiver.wait_for(_ALIMTALK, lambda call: call.key == str(paid.event_id), "the notice")
        read = wait_for_commit("notification", message)
        template = json.loads(call.body)["templateCode"]
        say("AlertListener->>AlertTalkClient: 알림 전송 및 ack", f"{template}: {call.status}; ack: offset {read}")

    def _a_coupon(self, scene: Scene, coupon: Coupon) -> None:
        say = scene.narration.arrow
        scene.narration.diagram(2)
        issuer = scene.processes["issuer"]
        # The issuer deletes the reservation with its decision: it is stopped while the reservation is read.
        issuer.send_signal(signal.SIGSTOP)
        try:
            reply = scene.client.post(1, _path(coupon), {})
            scene.expect_status(reply, 202, f"POST {_path(coupon)}")
            request_id = reply.request_id
            row, reservation = outbox_row(request_id), Reservation.objects.get(request_id=request_id)
            coupon.refresh_from_db()
            transaction = scene.expect_one_transaction(stock=coupon, reservation=reservation, request=row)
        finally:
            issuer.send_signal(signal.SIGCONT)
        say("Client->>IssueCouponUseCase: 쿠폰 발급 요청", f"POST {_path(coupon)} of user 1")
        say("IssueCouponUseCase->>Transaction: 트랜잭션 실행", f"transaction {transaction}")
        say("Transaction->>CouponIssueService: 쿠폰 타입 조회", f"{reply.body['couponType']}, open, {coupon.admission}")
        say(
            "Transaction->>CouponStockService: 재고 차감",
            f"reserved {coupon.reserved} of {coupon.total_quantity}, sequence {reply.body['sequence']}",
        )
        say(
            "Transaction-->>IssueCouponUseCase: 트랜잭션 커밋",
            f"transaction {transaction} wrote stock, reservation and request",
        )
        say("IssueCouponUseCase->>CouponQueueService: Kafka 발행", f"outbox row {row.id}, 202 requestId {request_id}")
        wait_published(request_id)
        message = scene.topics.message(_COUPONS, is_event(request_id), f"request {request_id}")
        say("CouponQueueService->>Kafka: 쿠폰 이벤트 발행", f"{position_of(message)}, after the commit")
        result = decision(request_id)
        member = wait_for_owner("issue", message)
        say("Kafka-->>CouponListener: 메시지 수신", f"{message} to {scene.consumer('issue', member)}")
        scene.expect(result.status == "SUCCESS", f"request {request_id} ended {decided(result)}")
        say("CouponListener->>CouponIssueService: 쿠폰 생성", decided(result))
        left = Reservation.objects.filter(request_id=request_id).count()
        coupon.refresh_from_db()
        scene.expect(not left, f"request {request_id} is decided and still has a reservation")
        transaction = scene.expect_one_transaction(request=result, user_coupon=user_coupon_of(result), stock=coupon)
        say(
            "CouponIssueService->>CouponDB: 쿠폰 저장",
            f"transaction {transaction} wrote request, user coupon and stock: issued {coupon.issued}, reserved"
            f" {coupon.reserved}; the reservation is gone",
        )
        say("CouponListener-->>Kafka: ack", f"offset {wait_for_commit('issue', message)} committed, after the commit")
        self._same_message_again(scene, message, result)

    def _same_message_again(self, scene: Scene, message: ReceivedMessage, result: IssueRequest) -> None:
        publish(_COUPONS, message.value or b"", key=message.key or b"", headers=dict(message.headers))
        again = scene.topics.message(
            _COUPONS, lambda one: one.event_id == message.event_id and one.offset > message.offset, "the second copy"
        )
        wait_for_commit("issue", again)
        kept = decision(result.request_id)
        scene.expect(kept.offset == result.offset, f"the copy at {again} was decided again")
        scene.narration.passage("중복 발급 방지", f"the same message again at {again}: the row stays that of {message}")

    def _one_unit_for_two(self, scene: Scene, coupon: Coupon) -> None:
        scene.narration.heading("two users and the last unit")
        replies = scene.client.post_together([Call(2, _path(coupon), {}), Call(3, _path(coupon), {})])
        statuses = sorted(reply.status for reply in replies)
        scene.expect(statuses == [202, 409], f"two requests for one unit were answered {statuses}")
        refused = next(reply for reply in replies if reply.status == 409)
        scene.narration.passage(
            "Distributed Lock", f"one 202, one 409 {refused.body['code']}: the row lock of PostgreSQL"
        )
        winner = next(user for user, reply in zip((2, 3), replies, strict=True) if reply.status == 202)
        again = scene.client.post(winner, _path(coupon), {})
        scene.expect_status(again, 409, "the winner again")
        scene.narration.passage("중복 처리", f"user {winner} again: 409 {again.body['code']}")

    def _a_dead_letter(self, scene: Scene, coupon: Coupon) -> None:
        scene.narration.heading("a message that cannot be handled")
        with failing_inserts(_FAILING_USER):
            reply = scene.client.post(_FAILING_USER, _path(coupon), {})
            scene.expect_status(reply, 202, f"the request of user {_FAILING_USER}")
            result = decision(reply.request_id)
            times = refusals()
        scene.expect(len(times) == settings.CONSUMER_MAX_ATTEMPTS, f"the consumer tried otherwise: {refused(times)}")
        scene.expect(result.reason == "ERROR", f"request {reply.request_id} ended {decided(result)}")
        scene.narration.passage("new FixedBackOff(1000L, 3)", f"{refused(times)}: no further try")
        letter = scene.topics.message(_DEAD_LETTERS, is_event(reply.request_id), f"request {reply.request_id}")
        origin = (letter.header("x-original-topic") or b"").decode()
        scene.narration.passage("실패 → 재시도 후 DLQ 전송", f"{position_of(letter)}, from {origin}: {decided(result)}")
        reserved = Reservation.objects.filter(request_id=reply.request_id).count()
        coupon.refresh_from_db()
        scene.expect((reserved, coupon.reserved) == (0, 0), f"{coupon.reserved} units are still reserved")
        transaction = scene.expect_one_transaction(request=result, stock=coupon)
        scene.narration.passage(
            "재고 차감",
            f"given back: transaction {transaction} wrote the refusal and the stock; {coupon.reserved} units reserved",
        )

    def _a_broker_dies(self, scene: Scene, coupon: Coupon) -> None:
        reply = scene.client.post(4, _path(coupon), {})
        message = scene.topics.message(_COUPONS, is_event(reply.request_id), f"request {reply.request_id}")
        leader, _, _ = replicas_of(_COUPONS, message.partition)
        broker = self._broker(scene, leader)
        if broker is None:
            return
        scene.narration.heading(f"a broker dies: kill -9 broker {leader}, the leader of partition {message.partition}")
        broker.kill()
        try:
            during = scene.client.post(5, _path(coupon), {})
            scene.expect_status(during, 202, "a request without a broker")
            result = decision(during.request_id)
            wait_published(during.request_id)
            message = scene.topics.message(_COUPONS, is_event(during.request_id), f"request {during.request_id}")
            now, _, in_sync = replicas_of(_COUPONS, message.partition)
        finally:
            broker.start()
        scene.expect(result.status == "SUCCESS", f"request {during.request_id} ended {decided(result)}")
        scene.expect(now != leader, f"the dead broker {leader} is still the leader of {prefixed(_COUPONS)}")
        scene.narration.passage(
            "장애 대비 데이터 복제",
            f"without broker {leader} broker {now} leads, in sync {in_sync}; 202, {message}, {decided(result)}",
        )
        wait_until(
            lambda: len(replicas_of(_COUPONS, message.partition)[2]) == _BROKERS,
            OBSERVE_SECONDS,
            f"broker {leader} does not catch up",
        )
        scene.narration.passage(
            "장애 대비 데이터 복제", f"broker {leader} is started again: {_BROKERS} replicas in sync again"
        )

    def _broker(self, scene: Scene, number: int) -> Part | None:
        """Return a broker of devstack's cluster, None if the brokers are not devstack's to kill."""
        try:
            if scene.stack:
                return Stack(scene.stack, report=lambda line: None).part(f"kafka-{number}")
            reason = "the brokers are not devstack's"
        except DevstackError as error:
            reason = str(error)
        scene.narration.heading(f"a broker dies: not shown, {reason}")
        return None


def _path(coupon: Coupon) -> str:
    return f"/api/v1/coupons/{coupon.id}/issue-async"
