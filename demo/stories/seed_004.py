"""Document 004: effects of a confirmed order that are only logged when they fail, and a sale over five partitions."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

from coupons.models import Coupon, IssueRequest, Notification
from demo.stories.client import Call, Reply
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
from demo.stories.shopping import PaidOrder, buy, completed_message, make_product
from demo.stories.story import Scene, Story, make_coupon, roles
from demo.stories.topics import (
    OBSERVE_SECONDS,
    is_event,
    is_of_request,
    position_of,
    wait_for_commit,
    wait_for_consumers,
    wait_for_owner,
)
from demo.stories.words import counted, listed
from devstack import wait_until
from kafka_bridge.models import DeadLetter
from kafka_bridge.registry import ReceivedMessage
from orders.models import Order, Product, StoredOrder

_REQUESTS, _SUCCEEDED, _FAILED = "coupon-issue", "coupon-issue-succeeded", "coupon-issue-failed"
_ORDERS = "order-completed"
_PLATFORM = "/platform"
_BUYER, _WINNER, _LOSER = 1, 2, 3


class Seed004(Story):
    """A payment with its two effects, one of which fails, and a coupon of one unit for two users."""

    number = "004"
    roles = roles("effects")

    def settings(self, receiver: Receiver) -> dict[str, str]:
        return {"DATA_PLATFORM_URL": receiver.url(_PLATFORM)}

    def tell(self, scene: Scene) -> None:
        """Follow both diagrams, with an effect that fails between them."""
        coupon = make_coupon("FLASH_SALE", 1, percent=30)
        product = make_product()
        self._a_payment(scene, product)
        self._an_effect_fails(scene, product)
        self._a_sale(scene, coupon)

    def _a_payment(self, scene: Scene, product: Product) -> None:
        say = scene.narration.arrow
        scene.narration.diagram(1)
        before = self._sold(scene, product)
        paid = buy(scene, product, _BUYER, quantity=2)
        row = outbox_row(paid.event_id)
        transaction = scene.expect_one_transaction(order=paid.order, event=row)
        say("Client->>PaymentService: 결제 요청", f"POST /api/v1/orders/{paid.order.id}/pay of user {_BUYER}")
        say(
            "PaymentService-->>ApplicationEventManager: 결제 완료 이벤트 발행",
            f"PaymentCompleted stays in the process and is not observed; the order has paid_at {paid.order.paid_at}",
        )
        say(
            "OrderService->>ApplicationEventManager: 결제 완료 이벤트 수신",
            f"order and OrderCompleted are of transaction {transaction}",
        )
        say("OrderService->>OrderService: 주문 확정 처리", f"order {paid.order.id} is {paid.order.status}")
        say("PaymentService->>Client: 결제 완료 응답", f"{paid.reply.status} {paid.reply.text}: after the commit")
        wait_published(paid.event_id)
        message = completed_message(scene, _ORDERS, paid)
        say(
            "OrderService-->>Kafka: 주문 확정 이벤트 발행",
            f"outbox row {row.id} of transaction {transaction}, then {position_of(message)}",
        )
        wait_handled("data-platform", paid.event_id)
        read = wait_for_commit("data-platform", message)
        say("DataPlatform->>Kafka: 주문 정보 수신", f"group data-platform has committed offset {read}")
        stored = StoredOrder.objects.get(order_id=paid.order.id)
        call = scene.receiver.wait_for(_PLATFORM, lambda call: call.key == str(paid.event_id), "the order")
        say(
            "DataPlatform-->>DataPlatform: 주문 정보 저장",
            f"row of order {stored.order_id}, {stored.pay_amount} won; posted, answered {call.status}",
        )
        self._ranked(scene, product, message, before + 2)

    def _ranked(self, scene: Scene, product: Product, message: ReceivedMessage, wanted: int) -> None:
        read = wait_for_commit("ranking", message)
        scene.narration.arrow("RankingService->>Kafka: 판매량 정보 수신", f"group ranking has committed offset {read}")
        wait_until(
            lambda: self._sold(scene, product) == wanted, OBSERVE_SECONDS, f"the ranking does not show {wanted} units"
        )
        scene.narration.arrow(
            "RankingService-->>RankingService: 판매량 업데이트",
            f"GET best-sellers: {product.name} with {wanted} units sold",
        )

    def _sold(self, scene: Scene, product: Product) -> int:
        reply = scene.client.get(_BUYER, "/api/v1/rankings/best-sellers?days=1&limit=200")
        return next((row["quantity"] for row in reply.body["results"] if row["productId"] == product.id), 0)

    def _an_effect_fails(self, scene: Scene, product: Product) -> None:
        scene.narration.heading("an effect fails")
        letters = DeadLetter.objects.count()
        scene.receiver.answers[_PLATFORM] = 400
        paid = buy(scene, product, _BUYER)
        message = completed_message(scene, _ORDERS, paid)
        line = scene.logged("effects", "data-platform", str(message), "logged and skipped")
        scene.receiver.answers.clear()
        read = wait_for_commit("data-platform", message)
        scene.expect(not self._is_stored(paid), f"order {paid.order.id} was stored though its call failed")
        scene.expect(DeadLetter.objects.count() == letters, "the failed effect became a dead letter")
        order = Order.objects.get(id=paid.order.id)
        calls = len(scene.receiver.to(_PLATFORM, str(paid.event_id)))
        scene.narration.passage(
            "실패 시, 별도의 사후 처리 없이 로그로 남겼습니다",
            f"the data platform answered 400 to {counted(calls, 'call')}: offset {read} committed, no dead letter,"
            f" the order stays {order.status}",
        )
        scene.narration.passage("로그로", f"effects.log: {line['event']}")
        wait_handled("ranking", paid.event_id)
        scene.narration.passage("판매량 전송", f"group ranking has handled {message} all the same")

    def _is_stored(self, paid: PaidOrder) -> bool:
        return StoredOrder.objects.filter(order_id=paid.order.id).exists()

    def _a_sale(self, scene: Scene, coupon: Coupon) -> None:
        say = scene.narration.arrow
        members = wait_for_consumers("issue", 5)
        scene.narration.diagram(2)
        scene.narration.passage("컨슈머의 concurrency 를 5로", f"{len(members)} consumers share the 5 partitions")
        reply, message, result = self._ask(scene, coupon.id, _WINNER)
        row = outbox_row(reply.request_id)
        say("Client->>CouponService: 쿠폰 발급 요청", f"POST for user {_WINNER}; the stock is 1")
        say("CouponService->>ApplicationEventManager: 쿠폰 발급 요청 이벤트 발행", f"outbox row {row.id}")
        say("CouponService->>Client: 쿠폰 발급 요청 생성됨 응답", f"202, requestId {reply.request_id}, PENDING")
        say("ApplicationEventManager-->>Kafka: 쿠폰 발급 요청 이벤트 전송(메시지키: coupon-id)", position_of(message))
        member = wait_for_owner("issue", message)
        say(
            "Kafka->>CouponService: 쿠폰 발급 요청 이벤트 수신",
            f"{message} to {scene.consumer('issue', member)}",
        )
        say("CouponService->>CouponService: 쿠폰 발급 처리", f"{scene.decided_by(reply.request_id)}: {decided(result)}")
        answer = result_row(reply.request_id)
        scene.expect(result.status == "SUCCESS", f"user {_WINNER} got {decided(result)}")
        transaction = scene.expect_one_transaction(
            request=result, user_coupon=user_coupon_of(result), stock=coupon, event=answer
        )
        say(
            "CouponService->>CouponService: 커밋",
            f"transaction {transaction} wrote request, user coupon, stock and event",
        )
        say("CouponService->>ApplicationEventManager: 쿠폰 발급 완료 이벤트 발행", f"outbox row {answer.id}")
        wait_published(answer.event_id)
        say("Kafka->>ApplicationEventManager: 쿠폰 발급 완료 이벤트 수신", "the relay has read the row")
        success = scene.topics.message(_SUCCEEDED, is_of_request(reply.request_id), "the result")
        say("Kafka->>Kafka: 쿠폰 발급 완료 이벤트 발행", position_of(success))
        self._told(scene, answer.event_id, _WINNER)
        self._a_loser(scene, coupon.id)
        self._several_coupons(scene)

    def _a_loser(self, scene: Scene, coupon_id: int) -> None:
        say = scene.narration.arrow
        scene.narration.heading(f"diagram 2 goes on: user {_LOSER} asks, after the last unit")
        reply, _, result = self._ask(scene, coupon_id, _LOSER)
        answer, coupons = result_row(reply.request_id), user_coupons(_LOSER, coupon_id)
        scene.expect((result.reason, coupons) == ("SOLD_OUT", 0), f"user {_LOSER} got {decided(result)}")
        say(
            "CouponService->>CouponService: 롤백",
            f"user {_LOSER}: {decided(result)}, no coupon; the refusal is a row of transaction"
            f" {transaction_of(result)}, not a rollback",
        )
        say("CouponService->>ApplicationEventManager: 쿠폰 발급 실패 이벤트 발행", f"outbox row {answer.id}")
        wait_published(answer.event_id)
        say("Kafka->>ApplicationEventManager: 쿠폰 발급 실패 이벤트 수신", "the relay has read the row")
        failure = scene.topics.message(_FAILED, is_of_request(reply.request_id), "the result")
        say("Kafka->>Kafka: 쿠폰 발급 실패 이벤트 발행", position_of(failure))
        self._told(scene, answer.event_id, _LOSER)

    def _told(self, scene: Scene, event_id: UUID, user_id: int) -> None:
        wait_handled("results", event_id)
        notice = Notification.objects.get(event_id=event_id)
        scene.expect(notice.user_id == user_id, f"the result of user {user_id} was told user {notice.user_id}")
        scene.narration.passage(
            "쿠폰 발급 성공/실패 알림", f"group results has told user {user_id}: {notice.template_code}"
        )

    def _several_coupons(self, scene: Scene) -> None:
        coupons = [make_coupon(f"FLASH_SALE_{number}", 1, won=1000) for number in range(2, 9)]
        scene.narration.heading(f"user {_BUYER} asks for {len(coupons)} coupons at once")
        calls = [Call(_BUYER, _path(coupon.id), {}) for coupon in coupons]
        replies = scene.client.post_together(calls)
        messages = [
            scene.topics.message(_REQUESTS, is_event(reply.request_id), f"request {reply.request_id}")
            for reply in replies
        ]
        for reply in replies:
            scene.expect(decision(reply.request_id).status == "SUCCESS", f"request {reply.request_id} failed")
        partitions = Counter(message.partition for message in messages)
        owners = {str(wait_for_owner("issue", message)) for message in messages}
        scene.expect(len(owners) == len(partitions) > 1, f"partitions {set(partitions)} have the consumers {owners}")
        shares = [
            f"{number} of them share partition {partition}" for partition, number in partitions.items() if number > 1
        ]
        scene.narration.passage(
            "여러가지 쿠폰의 요청을 동시에 처리",
            f"the requests for {len(coupons)} coupons are on {len(partitions)} partitions, each with a consumer of its"
            f" own" + (f"; {listed(shares)} and wait for each other" if shares else ""),
        )

    def _ask(self, scene: Scene, coupon_id: int, user_id: int) -> tuple[Reply, ReceivedMessage, IssueRequest]:
        reply = scene.client.post(user_id, _path(coupon_id), {})
        scene.expect_status(reply, 202, f"the request of user {user_id}")
        message = scene.topics.message(_REQUESTS, is_event(reply.request_id), f"request {reply.request_id}")
        scene.expect((message.key or b"").decode() == str(coupon_id), f"the key of {message} is {message.key!r}")
        return reply, message, decision(reply.request_id)


def _path(coupon_id: int) -> str:
    return f"/api/v1/coupons/{coupon_id}/issue-async"
