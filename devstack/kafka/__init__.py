"""Apache Kafka in KRaft mode: where its jars and its Java come from, and its brokers."""
