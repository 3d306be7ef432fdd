"""Apache Kafka in KRaft mode: its brokers, its jars and its Java."""
