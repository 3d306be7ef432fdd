"""Services outside that orders depend on."""
