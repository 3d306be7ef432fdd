"""The outbox table: events written in the transaction of the change that they announce.

``writing`` inserts rows and ``pruning`` deletes old ones. ``settled_mark`` tells the relay up to which row id all is
published, and ``wake`` tells it that there are new ones. ``backpressure`` refuses new requests while the relay is far
behind. ``transports`` is for events that reach their consumers by something else than Kafka, such as a Redis queue.
"""
