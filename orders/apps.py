from django.apps import AppConfig


class OrdersConfig(AppConfig):
    name = "orders"

    def ready(self) -> None:
        from . import consumer_groups, housekeeping
        from .services import confirming

        confirming.subscribe()
        consumer_groups.register()
        housekeeping.register()
