from django.contrib import admin

from . import models

admin.site.register([models.Coupon, models.UserCoupon, models.IssueRequest])
