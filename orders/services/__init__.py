"""What changes orders; each module is one thing that can happen to them."""
