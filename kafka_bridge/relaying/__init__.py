"""From the outbox to Kafka: the relay, the leases by which relays share the work, and publishing a lost topic again."""
