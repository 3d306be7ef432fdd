from django.apps import AppConfig


class KafkaBridgeConfig(AppConfig):
    name = "kafka_bridge"
    verbose_name = "Kafka bridge"

    def ready(self) -> None:
        from .consuming import dead_letter_monitor
        from .operating import (
            bridge_tasks,
            housekeeping_alarms,
            kafka_alarms,
            message_alarms,
            outbox_alarms,
            processes,
            samples,
        )

        for module in (
            dead_letter_monitor,
            bridge_tasks,
            samples,
            processes,
            kafka_alarms,
            message_alarms,
            outbox_alarms,
            housekeeping_alarms,
        ):
            module.register()
