"""What a browser makes of the admin's pages."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any


def html_of(response: Any) -> str:
    """The HTML of a page, which must have worked."""
    assert response.status_code == 200, f"{response.status_code} {response.headers.get('Location', '')}"
    return str(response.content.decode())


class _Form(HTMLParser):
    """Collects what a browser would submit of the form with an id."""

    def __init__(self, form_id: str) -> None:
        super().__init__()
        self._id = form_id
        self._inside = False
        self._select = ""
        self.data: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        name = values.get("name", "")
        if tag == "form":
            self._inside = values.get("id") == self._id
        elif not self._inside:
            return
        elif tag == "select":
            self._select = name
        elif tag == "option" and "selected" in values:
            self.data[self._select] = values["value"]
        elif tag == "input" and values.get("type") not in ("submit", "checkbox"):
            self.data[name] = values.get("value", "")
        elif tag == "input" and values["type"] == "checkbox" and "checked" in values:
            self.data[name] = values.get("value", "on")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._inside = False


def form_of(response: Any, form_id: str = "coupon_form") -> dict[str, str]:
    """What the form of a page would send if nothing was touched."""
    form = _Form(form_id)
    form.feed(html_of(response))
    assert form.data, f"no form {form_id}"
    return {name: value for name, value in form.data.items() if not name.startswith("_")}


def errors_of(response: Any) -> dict[str, list[str]]:
    """The errors that a form page shows, by field; empty if it was saved."""
    if response.status_code == 302:
        return {}
    html_of(response)
    return {name: list(messages) for name, messages in response.context["adminform"].form.errors.items()}


def messages_of(response: Any) -> list[str]:
    """The messages above a page."""
    return [str(message) for message in response.context["messages"]]


def rows_of(response: Any) -> list[Any]:
    """The rows that a list page shows."""
    html_of(response)
    return list(response.context["cl"].result_list)
