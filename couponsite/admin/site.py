"""The admin site: unfold's, with its own login and page search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from couponsite.auth.login_brake import TooManyLogins, check_password

if TYPE_CHECKING:
    from django.contrib.admin import AdminSite
    from django.contrib.admin.forms import AdminAuthenticationForm as AuthenticationForm

    class UnfoldAdminSite(AdminSite):
        def _search_apps(self, app_list: list[Any], search_term: str) -> list[Any]: ...
else:
    from unfold.forms import AuthenticationForm
    from unfold.sites import UnfoldAdminSite

_MAX_RESULTS = 100


class LoginForm(AuthenticationForm):
    """unfold's form, throttled like ``/api/v1/auth/token``."""

    # Seconds until the next attempt; None unless throttled.
    retry_after: int | None = None

    def clean(self) -> dict[str, Any]:
        username, password = self.cleaned_data.get("username"), self.cleaned_data.get("password")
        if username is not None and password:
            assert self.request is not None
            try:
                user = check_password(self.request, username, password)
            except TooManyLogins as error:
                self.retry_after = error.wait
                message = f"Too many logins: try again in {self.retry_after} seconds."
                raise ValidationError(message, code="throttled") from None
            if user is None:
                raise self.get_invalid_login_error()
            self.confirm_login_allowed(user)
            self.user_cache = user
        return self.cleaned_data


class CouponAdminSite(UnfoldAdminSite):
    login_form = LoginForm

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Serve the login page; with status 429 and Retry-After when throttled."""
        response = super().login(request, extra_context)
        form = (getattr(response, "context_data", None) or {}).get("form")
        if isinstance(form, LoginForm) and form.retry_after is not None:
            response.status_code = 429
            response["Retry-After"] = str(form.retry_after)
        return response

    def search(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Return the pages whose name contains ``s``, as a fragment for the command palette (Ctrl+K).

        unfold's own view stores objects in the cache, which takes only JSON and may be unavailable.
        """
        text = request.GET.get("s", "").lower()
        if not text:
            return HttpResponse()
        paginator = Paginator(self._search_apps(self.get_app_list(request), text), _MAX_RESULTS)
        fragment = "command_results" if "extended" in request.GET else "search_results"
        return TemplateResponse(
            request,
            f"unfold/helpers/{fragment}.html",
            {"page_obj": paginator, "results": paginator.page(1), "page_counter": 0, "execution_time": 0},
            headers={"HX-Trigger": "search"},
        )
