"""The trail of every request in the logs: one line at the door and one at its decision.

Lines carry ``requestId`` and ``traceparent``, so that one search finds a request's whole way through the processes.
"""

from __future__ import annotations

import logging
from typing import Any

# Its formatter is chosen in the settings: at the rate of a flash sale a line must cost microseconds.
_logger = logging.getLogger("coupons.requests")


def tell(event: str, **fields: Any) -> None:
    """One line about a request; ``fields`` are plain values under the names of the API."""
    if _logger.isEnabledFor(logging.INFO):
        _logger.info(event, extra={"request": fields})
