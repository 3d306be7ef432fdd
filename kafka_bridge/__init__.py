"""Events between PostgreSQL and Kafka for any Django project: an outbox, the relay that publishes it, and consumers.

An app writes events with ``outbox.writing`` and registers its consumer groups with ``registry``; the project's settings
hold routes (``routes``), group ids and clients. ``client`` is the only module that talks to librdkafka.
"""
