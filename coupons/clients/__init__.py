"""Services outside that tell users something."""
