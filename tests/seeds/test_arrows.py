"""The tests of a document name every arrow of its diagrams, as often as it is drawn, in the document's words."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from django.conf import settings

from demo.stories.document import read_document


@pytest.mark.parametrize("number", ["000", "001", "002", "003", "004"])
def test_every_arrow_is_named_where_it_is_followed(number: str) -> None:
    document = read_document(settings.BASE_DIR / "seeds" / f"seed-{number}.md")
    lines = Path(__file__).with_name(f"test_seed_{number}.py").read_text().splitlines()
    named = [line.strip() for line in lines if line.strip().startswith("#")]
    drawn = Counter(arrow for diagram in document.diagrams for arrow in diagram.arrows)
    assert drawn.total() > 15
    followed = {arrow: sum(comment.endswith(arrow) for comment in named) for arrow in drawn}
    assert [arrow for arrow, times in drawn.items() if followed[arrow] < times] == []
