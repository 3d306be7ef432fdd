"""Changes of orders, one module per operation."""
