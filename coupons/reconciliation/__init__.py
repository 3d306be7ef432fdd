"""Gate, worker list and outbox held against PostgreSQL while everything runs, and mended where they differ."""
