from django.apps import AppConfig


class StubAppConfig(AppConfig):
    name = "tests.stub_app"

    def ready(self) -> None:
        from . import consumer_groups

        consumer_groups.register()
