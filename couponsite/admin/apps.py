"""Replaces ``django.contrib.admin`` in INSTALLED_APPS. Imports nothing that needs loaded models before ``ready``."""

from django.contrib.admin.apps import AdminConfig


class CouponAdminConfig(AdminConfig):
    default_site = "couponsite.admin.site.CouponAdminSite"

    def ready(self) -> None:
        super().ready()
        # Imported for its side effect, after Django's own pages of users and groups, which it replaces.
        from . import accounts  # noqa: F401
