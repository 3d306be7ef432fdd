"""What no JSON Schema can say, for Schemathesis: to a schema 5.0 is an integer, while the API wants it written as 5."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    return _without_fractions(body)


def _without_fractions(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_fractions(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_fractions(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
