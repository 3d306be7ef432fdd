"""Compare gate, Redis queue, outbox, stock and status cache with PostgreSQL under traffic, and repair differences."""
