"""Types for argparse whose errors name the value and the legal range."""

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def integer(low: int, high: float = math.inf) -> Callable[[str], int]:
    """Of [low, high]. What it returns raises ArgumentTypeError."""
    return _ranged(int, "an integer", low, high, includes_low=True)


def number(low: float, high: float = math.inf, includes_low: bool = True) -> Callable[[str], float]:
    """Of [low, high], or of (low, high]; never infinite. What it returns raises ArgumentTypeError."""
    return _ranged(float, "a number", low, high, includes_low)


def _ranged(
    convert: Callable[[str], Number], what: str, low: float, high: float, includes_low: bool
) -> Callable[[str], Number]:
    legal = f"{what} in {'[' if includes_low else '('}{low:g}, {high:g}{']' if math.isfinite(high) else ')'}"

    def parse(text: str) -> Number:
        try:
            value = convert(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is not {legal}") from None
        is_high_enough = value >= low if includes_low else value > low
        if not (math.isfinite(value) and is_high_enough and value <= high):
            raise ArgumentTypeError(f"{text!r} is not {legal}")
        return value

    return parse
