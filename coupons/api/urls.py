"""Paths under ``/api/v1/``."""

from django.urls import path

from . import converters as converters
from .views import (
    CouponListView,
    CouponView,
    IssueByIdView,
    IssueByTypeView,
    IssueForUserView,
    IssueRequestView,
    UserCouponListView,
)

urlpatterns = [
    path("coupons", CouponListView.as_view()),
    path("coupons/issue-async", IssueByTypeView.as_view()),
    path("coupons/<id64:coupon_id>", CouponView.as_view()),
    path("coupons/<id64:coupon_id>/issue-async", IssueByIdView.as_view()),
    path("users/<id64:user_id>/coupons", UserCouponListView.as_view()),
    path("users/<id64:user_id>/coupons/<id64:coupon_id>/issue", IssueForUserView.as_view()),
    path("issue-requests/<anyuuid:request_id>", IssueRequestView.as_view()),
]
