"""Names of coupons and products, as people and their machines write them."""

from __future__ import annotations

TAKEN_NAMES = [
    "a",
    "x" * 200,
    "신규\u3000회원",  # the blank of Korean and Japanese keyboards
    "Family \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",  # joined by ZWJ
    "10\u00a0000 won",
    "Cafe\u0301",  # decomposed, as macOS writes it
    "קופון",
    "\u2764\ufe0f",
]
REFUSED_NAMES = [
    "",
    "   ",
    "\u3000",
    "\u00a0\u2003",
    "\u200d\u200b",
    "\u3164",
    "\ufe0f",
    "a\nb",
    "a\tb",
    "a\x1b[31mb",
    "a\x85b",
    "a\u2028b",
    "a\0b",
    "a\udcffb",
    "a\u202eb",
    "a\u2066b",
    "x" * 201,
]
