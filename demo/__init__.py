"""The demo: a flash sale on the real processes, with a crowd, a supervisor and a ledger.

Tests of whole processes use the crowd and the ledger too.
"""
