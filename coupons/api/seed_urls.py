"""The accept API at the paths of the seeds, without the prefix ``/api/v1``."""

from django.urls import path

from common.api.schema import AutoSchema

from . import converters as converters
from . import views


class _SeedPathSchema(AutoSchema):
    def get_operation_id(self) -> str:
        return f"{super().get_operation_id()}AtSeedPath"

    def get_description(self) -> str:  # type: ignore[override]
        return "The same operation as that under `/api/v1`."

    def get_tags(self) -> list[str]:
        return ["seed paths"]


class IssueByTypeView(views.IssueByTypeView):
    schema = _SeedPathSchema()


class IssueByIdView(views.IssueByIdView):
    schema = _SeedPathSchema()


urlpatterns = [
    path("coupons/issue-async", IssueByTypeView.as_view()),
    path("coupons/<id64:coupon_id>/issue-async", IssueByIdView.as_view()),
]
