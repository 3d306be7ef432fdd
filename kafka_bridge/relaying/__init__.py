"""From the outbox to Kafka: the relay, its wait for commits, the leases that divide the work, and republishing."""
