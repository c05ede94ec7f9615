"""Checks of values that users write: each raises LedParamError with the name, the value and what is legal."""

from typing import cast

__all__ = ["LedParamError", "require_choice", "require_flag", "require_int", "require_number", "require_text", "show"]

MAX_SHOWN = 80


class LedParamError(ValueError):
    """A LED parameter that cannot be honoured; the message names key, value and legal range (HTTP 400)."""


def require_int(name: str, value: object, low: int, high: int, why: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        limit = f" ({why})" if why else ""
        raise LedParamError(f"{name} must be an integer in [{low}, {high}]{limit}, got {show(value)}")


def require_number(name: str, value: object, low: float, high: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= cast(float, value) <= high:
        raise LedParamError(f"{name} must be a number in [{low:g}, {high:g}], got {show(value)}")


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise LedParamError(f"{name} must be one of {', '.join(choices)}, got {show(value)}")


def require_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise LedParamError(f"{name} must be true or false, got {show(value)}")


def require_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise LedParamError(f"{name} must be text, got {show(value)}")


def show(value: object) -> str:
    """A client's value in an error message: its `repr`, cut short."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4300 digits, lists nested too deep
        text = f"a {type(value).__name__} too large to print"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
