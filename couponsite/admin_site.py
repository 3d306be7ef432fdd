"""The admin site: unfold's, apart from its search for pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

if TYPE_CHECKING:
    from django.contrib.admin import AdminSite

    class UnfoldAdminSite(AdminSite):
        def _search_apps(self, app_list: list[Any], search_term: str) -> list[Any]: ...
else:
    from unfold.sites import UnfoldAdminSite

_MOST_RESULTS = 100


class CouponAdminSite(UnfoldAdminSite):
    def search(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The pages whose name contains ``s``, as a fragment for the palette (Ctrl+K).

        unfold's own stores objects in the cache, which takes JSON only and may be away.
        """
        text = request.GET.get("s", "").lower()
        if not text:
            return HttpResponse()
        paginator = Paginator(self._search_apps(self.get_app_list(request), text), _MOST_RESULTS)
        fragment = "command_results" if "extended" in request.GET else "search_results"
        return TemplateResponse(
            request,
            f"unfold/helpers/{fragment}.html",
            {"page_obj": paginator, "results": paginator.page(1), "page_counter": 0, "execution_time": 0},
            headers={"HX-Trigger": "search"},
        )
