"""Replaces ``django.contrib.admin`` in INSTALLED_APPS. Apart from admin_site, whose imports need loaded models."""

from django.contrib.admin.apps import AdminConfig


class CouponAdminConfig(AdminConfig):
    default_site = "couponsite.admin_site.CouponAdminSite"
