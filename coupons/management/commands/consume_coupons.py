from kafka_bridge.consuming.consume_command import ConsumeCommand


class Command(ConsumeCommand):
    help = f"{ConsumeCommand.help} The group issue issues coupons."
