"""The accept API at the paths of the seeds, without the prefix ``/api/v1``."""

from django.urls import path

from . import converters as converters
from .views import IssueByIdView, IssueByTypeView

urlpatterns = [
    path("coupons/issue-async", IssueByTypeView.as_view()),
    path("coupons/<id64:coupon_id>/issue-async", IssueByIdView.as_view()),
]
