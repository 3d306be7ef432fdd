"""The other way from the gate to the issuer: a list in Redis instead of Kafka (seed 001's system before Kafka).

A request that goes this way has its outbox row like any other, and that row is the truth. The list carries request ids
and nothing else, so whatever becomes of it, what it lost can be pushed again.
"""

# Stands in the outbox where others have their topic. It is none of Kafka's.
TRANSPORT = "issue-worker"
