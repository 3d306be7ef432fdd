"""The doors at the paths that the seeds gave them, without the API's prefix."""

from django.urls import path

from . import converters as converters
from .views import IssueByIdView, IssueByTypeView

urlpatterns = [
    path("coupons/issue-async", IssueByTypeView.as_view()),
    path("coupons/<id64:coupon_id>/issue-async", IssueByIdView.as_view()),
]
