from django.contrib import admin
from django.urls import include, path, re_path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularSwaggerView

from common.api.requests import APIView
from couponsite.auth.api import TokenRefreshView, TokenView
from couponsite.error_pages import no_such_endpoint
from couponsite.openapi import OneDocument
from couponsite.pages import start

urlpatterns = [
    path("", start, name="start"),
    path("api/v1/auth/token", TokenView.as_view(), name="auth-token"),
    path("api/v1/auth/token/refresh", TokenRefreshView.as_view(), name="auth-token-refresh"),
    path("api/v1/", include("coupons.api.urls")),
    path("api/v1/", include("orders.api_urls")),
    path("", include("coupons.api.seed_urls")),
    path(
        "api/schema",
        SpectacularJSONAPIView.as_view(generator_class=OneDocument, http_method_names=APIView.http_method_names),
        name="schema",
    ),
    path(
        "api/docs",
        SpectacularSwaggerView.as_view(url_name="schema", http_method_names=APIView.http_method_names),
        name="docs",
    ),
    path("ops", RedirectView.as_view(pattern_name="ops:dashboard")),
    path("ops/", include("couponsite.ops.urls")),
    path("admin", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    re_path(r"^(?:api|coupons)/", no_such_endpoint),
]

handler400 = "couponsite.error_pages.bad_request"
handler403 = "couponsite.error_pages.permission_denied"
handler404 = "couponsite.error_pages.page_not_found"
handler500 = "couponsite.error_pages.server_error"
