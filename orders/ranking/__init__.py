"""The best sellers: counted in Redis by day, read from there, and made anew from PostgreSQL or the topics."""
