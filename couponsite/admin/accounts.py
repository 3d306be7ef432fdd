"""Admin pages of users and groups, in the same theme as the other pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.http import HttpRequest
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm  # type: ignore[import-untyped]

if TYPE_CHECKING:

    class ModelAdmin:
        """unfold is untyped; its ModelAdmin only supplies templates and widgets here."""
else:
    from unfold.admin import ModelAdmin

admin.site.unregister([User, Group])


class ExactLookups:
    """Allow only exact filters in URLs: other lookups take years and patterns that fail in the database."""

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        allowed: bool = super().lookup_allowed(lookup, value, request)  # type: ignore[misc]
        return allowed and lookup.endswith(("__exact", "__isnull"))


@admin.register(User)
class UserAdmin(ExactLookups, DjangoUserAdmin, ModelAdmin):  # type: ignore[type-arg]
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm


@admin.register(Group)
class GroupAdmin(ExactLookups, DjangoGroupAdmin, ModelAdmin):
    pass
