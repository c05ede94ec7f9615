"""A number on a command line is taken as it is, or refused with its legal range."""

import argparse
from collections.abc import Callable

import pytest

from led_sglang.cli.arguments import integer, number


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (integer(1), "1", 1),
        (integer(1, 16), "16", 16),
        (integer(-1), "-1", -1),
        (number(0), "0", 0.0),
        (number(0, 1, includes_low=False), "1e-3", 0.001),
        (number(0, 1, includes_low=False), "1", 1.0),
    ],
)
def test_legal(kind: Callable[[str], float], text: str, value: float) -> None:
    assert kind(text) == value and type(kind(text)) is type(value)


@pytest.mark.parametrize(
    ("kind", "text", "legal"),
    [
        (integer(1), "0", "an integer in [1, inf)"),
        (integer(1), "1.5", "an integer in [1, inf)"),
        (integer(1, 16), "17", "an integer in [1, 16]"),
        (integer(1, 16), "many", "an integer in [1, 16]"),
        (number(0), "-0.1", "a number in [0, inf)"),
        (number(0), "inf", "a number in [0, inf)"),
        (number(0), "nan", "a number in [0, inf)"),
        (number(0, 1, includes_low=False), "0", "a number in (0, 1]"),
        (number(0, 1, includes_low=False), "1.01", "a number in (0, 1]"),
    ],
)
def test_refused(kind: Callable[[str], float], text: str, legal: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as error:
        kind(text)
    assert str(error.value) == f"{text!r} is not {legal}"
