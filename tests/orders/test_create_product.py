"""``create_product``: prints what it made, and refuses in one line."""

from __future__ import annotations

import json

import pytest
from django.core.management import CommandError, call_command

from orders.models import Product
from tests.support.names import REFUSED_NAMES, TAKEN_NAMES

pytestmark = pytest.mark.django_db


def test_a_product_is_created_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("create_product", "양말 🧦", "--price", "12900")
    product = Product.objects.get()
    assert json.loads(capsys.readouterr().out) == {"productId": product.id}
    assert (product.name, product.price) == ("양말 🧦", 12_900)


@pytest.mark.parametrize("name", TAKEN_NAMES)
def test_a_name_of_any_language_is_taken_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("create_product", name, "--price", "1")
    assert Product.objects.get().name == name


@pytest.mark.parametrize("name", REFUSED_NAMES)
def test_a_name_that_cannot_be_shown_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(CommandError, match=r"^NAME must ") as caught:
        call_command("create_product", name, "--price", "1")
    assert str(caught.value).isprintable()
    assert not Product.objects.exists()


def test_the_same_again_is_another_product(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        call_command("create_product", "Socks", "--price", "1")
    first, second = (json.loads(line)["productId"] for line in capsys.readouterr().out.splitlines())
    assert first != second


@pytest.mark.parametrize(
    "arguments",
    [
        ("", "--price", "1"),
        ("x" * 201, "--price", "1"),
        ("a\0b", "--price", "1"),
        ("\udcff", "--price", "1"),
        ("  ", "--price", "1"),
        ("Socks", "--price", "-1"),
        ("Socks", "--price", "1.5"),
        ("Socks", "--price", "free"),
        ("Socks", "--price", str(10**15 + 1)),
        ("Socks", "--price", str(2**63)),
        ("Socks", "--price", ""),
        ("Socks",),
        ("--price", "1"),
    ],
)
def test_a_product_that_cannot_be_is_refused_in_one_line(arguments: tuple[str, ...]) -> None:
    with pytest.raises(CommandError) as caught:
        call_command("create_product", *arguments)
    assert len(str(caught.value).splitlines()) == 1
    assert not Product.objects.exists()
