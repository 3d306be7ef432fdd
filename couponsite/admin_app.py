"""Stands in INSTALLED_APPS for ``django.contrib.admin``: apart from the site itself, which needs loaded models."""

from django.contrib.admin.apps import AdminConfig


class CouponAdminConfig(AdminConfig):
    default_site = "couponsite.admin_site.CouponAdminSite"
