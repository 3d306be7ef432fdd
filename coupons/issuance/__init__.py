"""The life of an issue request: accepted, decided, finished.

``accept`` prepares a request and ``accept_group`` accepts concurrent ones together; ``accept_bulk`` accepts those of
``coupons.bulk_issue``. ``issue`` decides a batch, by the rules of ``coupons.policy``. ``finish`` writes the results,
also those of requests that cannot be decided (``fail_dead_lettered``, ``fail_orphaned``).
"""
