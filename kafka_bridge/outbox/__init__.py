"""The outbox table: events written in the transaction of the change that they announce.

``writing`` inserts rows and ``pruning`` deletes old ones. ``published`` defines which rows are published, ``holds`` has
rows sent again, and ``settled_mark`` finds the id up to which no new row can appear. ``wake`` notifies the relay of new
rows. ``backpressure`` refuses new requests while the relay is far behind. ``transports`` is for events that reach their
consumers by something else than Kafka, such as a Redis queue.
"""
