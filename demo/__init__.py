"""The demo: a flash sale on the real processes, with a load client, a supervisor and a verification.

Tests of whole processes use the load client and the verification too.
"""
