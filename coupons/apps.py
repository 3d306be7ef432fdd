from django.apps import AppConfig


class CouponsConfig(AppConfig):
    name = "coupons"

    def ready(self) -> None:
        from . import alarms, consumer_groups, housekeeping

        for module in (alarms, consumer_groups, housekeeping):
            module.register()
