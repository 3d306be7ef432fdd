"""Who may see the pages of operators."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from django.contrib.auth.models import AnonymousUser, User
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import resolve, reverse
from django.utils.cache import add_never_cache_headers

from couponsite.error_pages import refusal

View = Callable[..., HttpResponseBase]
_PERMISSIONS = "staff_permissions"


def staff_page(*permissions: str) -> Callable[[View], View]:
    """Serve a view to staff with ``permissions`` only: others sign in first, or are refused (403).

    The response is not cached: it shows the state of the moment, and to its user only.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(request: HttpRequest, *arguments: object, **options: object) -> HttpResponseBase:
            user = request.user
            if not user.is_authenticated:
                # A form that is sent after the session has ended leads to the start: its address answers no GET.
                back_to = request.get_full_path() if request.method in ("GET", "HEAD") else reverse("ops:dashboard")
                return redirect_to_login(back_to, reverse("admin:login"))
            if not (user.is_active and user.is_staff):
                return refusal(request, "forbidden", "These pages are for staff.")
            if missing := [permission for permission in permissions if not user.has_perm(permission)]:
                return refusal(request, "forbidden", f"You have no permission for this: {', '.join(missing)}.")
            response = view(request, *arguments, **options)
            add_never_cache_headers(response)
            return response

        setattr(guarded, _PERMISSIONS, permissions)
        return guarded

    return decorate


def may_open(user: User | AnonymousUser, address: str) -> bool:
    """Whether a member of staff has the permissions of the page at ``address``, a path of a ``staff_page``."""
    return user.has_perms(getattr(resolve(address).func, _PERMISSIONS))
