"""The tests of a document name every arrow of its diagrams, in the document's words."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.conf import settings

from demo.stories.document import read_document


@pytest.mark.parametrize("number", ["000", "001", "002", "003", "004"])
def test_every_arrow_is_named_where_it_is_followed(number: str) -> None:
    document = read_document(settings.BASE_DIR / "seeds" / f"seed-{number}.md")
    lines = Path(__file__).with_name(f"test_seed_{number}.py").read_text().splitlines()
    named = [line.strip() for line in lines if line.strip().startswith("#")]
    arrows = [arrow for diagram in document.diagrams for arrow in diagram.arrows]
    assert len(arrows) > 15
    assert [arrow for arrow in arrows if not any(comment.endswith(arrow) for comment in named)] == []
