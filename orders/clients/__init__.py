"""Clients of the external services that orders depend on."""
