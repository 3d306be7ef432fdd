"""The Redis queue: a transport from the gate to the issuer instead of Kafka, as the system before Kafka had it.

A request on this transport has an outbox row like any other, and that row is authoritative. The queue holds only
request ids, so ids that it loses can be enqueued again.
"""

# Stored as the topic of outbox rows on this transport. It is not a Kafka topic.
TRANSPORT = "issue-worker"
