from django.urls import path

from .alerts import alerts, silence, unsilence
from .audit import audit
from .blocks import blocks
from .dashboard import dashboard, dashboard_panels
from .documents import document, documents
from .groups import control, groups
from .holds import hold, holds, release, retry
from .orders import order_way
from .preflight import preflight_page, send_test_alert
from .processes import processes
from .redrives import create, redrive, redrive_action, redrive_panels, redrives
from .requests import no_request_id, request_of_coupon, request_way, requests_search

app_name = "ops"
urlpatterns = [
    path("", dashboard, name="dashboard"),
    path("panels", dashboard_panels, name="dashboard-panels"),
    path("alerts", alerts, name="alerts"),
    path("alerts/silence", silence, name="silence"),
    path("alerts/unsilence", unsilence, name="unsilence"),
    path("audit", audit, name="audit"),
    path("holds", holds, name="holds"),
    path("holds/hold", hold, name="hold"),
    path("holds/release", release, name="release"),
    path("holds/retry", retry, name="retry"),
    path("processes", processes, name="processes"),
    path("groups", groups, name="groups"),
    path("groups/control", control, name="groups-control"),
    path("redrives", redrives, name="redrives"),
    path("redrives/create", create, name="redrive-create"),
    path("redrives/<int:redrive_id>", redrive, name="redrive"),
    path("redrives/<int:redrive_id>/panels", redrive_panels, name="redrive-panels"),
    path("redrives/<int:redrive_id>/<str:action>", redrive_action, name="redrive-action"),
    path("blocks", blocks, name="blocks"),
    path("requests", requests_search, name="requests"),
    path("requests/", requests_search),
    path("requests/<uuid:request_id>", request_way, name="request"),
    path("requests/<str:text>", no_request_id),
    path("requests/of-coupon/<int:user_coupon_id>", request_of_coupon, name="request-of-coupon"),
    path("orders/<int:order_id>", order_way, name="order"),
    path("preflight/<str:coupon_type>", preflight_page, name="preflight"),
    path("preflight/<str:coupon_type>/test-alert", send_test_alert, name="test-alert"),
    path("orders/<str:text>", no_request_id),
    path("docs/", documents, name="documents"),
    path("docs", documents),
    path("docs/<path:name>", document, name="document"),
]
