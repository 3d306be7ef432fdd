"""Pages for operators under ``/ops/``: what is wrong, why, and what to do. Only staff see them."""
