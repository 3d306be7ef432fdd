"""From Kafka to an app: consumers that commit an offset only after the transaction of the effects.

``consumer`` polls and ``batch`` handles; ``inbox`` gives a group each event once, ``dead_letters`` keeps what cannot be
handled, and ``retrying_partitions`` wait for a service. ``consume_command`` is the command that runs the groups.
"""
