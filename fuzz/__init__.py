"""Random hostile input from outside, over HTTP, Kafka and Redis, against the real processes; ``python -m fuzz``."""
