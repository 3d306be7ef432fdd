from __future__ import annotations

from tests.effects.conftest import _short_pauses, alimtalk, closed_provider, data_platform, loaded, provider

__all__ = ["_short_pauses", "alimtalk", "closed_provider", "data_platform", "loaded", "provider"]
