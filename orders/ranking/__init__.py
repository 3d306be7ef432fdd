"""The best sellers: counted per day in Redis, and rebuilt from PostgreSQL or from the topics."""
