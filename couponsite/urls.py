from django.contrib import admin
from django.urls import include, path, re_path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularSwaggerView

from coupons.http import APIView
from couponsite.auth_api import TokenRefreshView, TokenView
from couponsite.pages import start
from couponsite.problems import no_such_endpoint

urlpatterns = [
    path("", start, name="start"),
    path("api/v1/auth/token", TokenView.as_view(), name="auth-token"),
    path("api/v1/auth/token/refresh", TokenRefreshView.as_view(), name="auth-token-refresh"),
    path("api/v1/", include("coupons.api_urls")),
    path("api/v1/", include("orders.api_urls")),
    path("", include("coupons.seed_urls")),
    path("api/schema", SpectacularJSONAPIView.as_view(http_method_names=APIView.http_method_names), name="schema"),
    path(
        "api/docs",
        SpectacularSwaggerView.as_view(url_name="schema", http_method_names=APIView.http_method_names),
        name="docs",
    ),
    path("admin", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    re_path(r"^(?:api|coupons)/", no_such_endpoint),
]

handler400 = "couponsite.problems.bad_request"
handler403 = "couponsite.problems.permission_denied"
handler404 = "couponsite.problems.page_not_found"
handler500 = "couponsite.problems.server_error"
