from django.urls import path
from django.views.generic import RedirectView

from .alerts import alerts, silence, unsilence
from .blocks import blocks
from .dashboard import dashboard, dashboard_panels
from .documents import document, documents
from .orders import order_way
from .processes import processes
from .requests import no_request_id, request_of_coupon, request_way, requests_search

app_name = "ops"
urlpatterns = [
    path("", dashboard, name="dashboard"),
    path("panels", dashboard_panels, name="dashboard-panels"),
    path("alerts", alerts, name="alerts"),
    path("alerts/silence", silence, name="silence"),
    path("alerts/unsilence", unsilence, name="unsilence"),
    path("processes", processes, name="processes"),
    path("blocks", blocks, name="blocks"),
    path("requests", requests_search, name="requests"),
    path("requests/", requests_search),
    path("requests/<uuid:request_id>", request_way, name="request"),
    path("requests/<str:text>", no_request_id),
    path("requests/of-coupon/<int:user_coupon_id>", request_of_coupon, name="request-of-coupon"),
    path("orders/<int:order_id>", order_way, name="order"),
    path("orders/<str:text>", no_request_id),
    path("docs", RedirectView.as_view(pattern_name="ops:documents")),
    path("docs/", documents, name="documents"),
    path("docs/<path:name>", document, name="document"),
]
