"""Preflight: go or no-go before an event of a coupon, and its rehearsal."""
