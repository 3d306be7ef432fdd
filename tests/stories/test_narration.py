"""What a story prints, and what it takes for every arrow of a document to count as observed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from django.conf import settings
from rich.console import Console

from demo.stories.document import read_document
from demo.stories.narration import Narration
from demo.stories.telling import STORIES

_DOCUMENT = """
# A document

```mermaid
sequenceDiagram
    participant A as 클라이언트
    A->>B: 요청
    Note over A,B: { a: 1 }
    alt : 성공
        B -->> A : 응답 [1]
    else 실패
        A->>B: 요청
    end
```

```java
a->>b: not a diagram
```
"""


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def narration(tmp_path: Path, output: io.StringIO) -> Narration:
    path = tmp_path / "document.md"
    path.write_text(_DOCUMENT)
    return Narration(Console(file=output), read_document(path))


def lines_with(words: str, output: io.StringIO) -> list[str]:
    return [line for line in output.getvalue().splitlines() if words in line]


@pytest.mark.parametrize("number", STORIES)
def test_every_arrow_of_a_document_is_read(number: str) -> None:
    path = settings.BASE_DIR / "seeds" / f"seed-{number}.md"
    document = read_document(path)
    assert len(document.diagrams) == path.read_text().count("sequenceDiagram")
    read = [arrow.replace(" ", "") for diagram in document.diagrams for arrow in diagram.arrows]
    assert read == [line.replace(" ", "") for line in path.read_text().splitlines() if ">>" in line]


def test_an_arrow_is_printed_beside_what_was_observed(narration: Narration, output: io.StringIO) -> None:
    narration.diagram(1)
    narration.arrow("A->>B: 요청", "topic[2]@7")
    (line,) = lines_with("요청", output)
    assert line.split("  ")[0].split() == ["1", "A->>B:", "요청"]
    # No blanks after it: the output is no terminal.
    assert line.endswith("topic[2]@7")


def test_arrows_that_were_not_observed_are_named(narration: Narration) -> None:
    narration.diagram(1)
    narration.arrow("A->>B: 요청", "it")
    assert narration.unseen() == [
        "diagram 1, arrow 2: B-->>A: 응답 [1] was not observed",
        "diagram 1, arrow 3: A->>B: 요청 was not observed",
    ]
    narration.arrow("B-->>A: 응답 [1]", "it")
    narration.arrow("A->>B: 요청", "it")
    assert narration.unseen() == []
    assert narration.count() == 3


def test_an_arrow_that_is_drawn_twice_has_both_its_numbers(narration: Narration, output: io.StringIO) -> None:
    narration.diagram(1)
    narration.arrow("A->>B: 요청", "the second", occurrence=2)
    assert "diagram 1, arrow 1: A->>B: 요청 was not observed" in narration.unseen()
    narration.arrow("A->>B: 요청", "the first")
    assert [line.split()[0] for line in lines_with("요청", output)] == ["3", "1"]
    assert narration.count() == 2


def test_an_arrow_cannot_be_told_more_often_than_it_is_drawn(narration: Narration) -> None:
    narration.diagram(1)
    narration.arrow("B-->>A: 응답 [1]", "it")
    with pytest.raises(ValueError, match="has no further arrow"):
        narration.arrow("B-->>A: 응답 [1]", "it")
    with pytest.raises(ValueError, match="has no further arrow"):
        narration.arrow("A->>B: 요청", "it", occurrence=3)


def test_a_step_that_the_document_does_not_have_cannot_be_told(narration: Narration) -> None:
    narration.diagram(1)
    with pytest.raises(ValueError, match="has no arrow"):
        narration.arrow("a->>b: not a diagram", "it")
    with pytest.raises(ValueError, match="does not say"):
        narration.passage("재시도", "it")
