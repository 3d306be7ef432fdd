"""Paths under ``/api/v1/``."""

from django.urls import path

from coupons.api import converters as converters

from .api import CancelOrderView, OrderListView, OrderView, PayOrderView
from .ranking.api import BestSellersView

urlpatterns = [
    path("orders", OrderListView.as_view()),
    path("orders/<id64:order_id>", OrderView.as_view()),
    path("orders/<id64:order_id>/pay", PayOrderView.as_view()),
    path("orders/<id64:order_id>/cancel", CancelOrderView.as_view()),
    path("rankings/best-sellers", BestSellersView.as_view()),
]
