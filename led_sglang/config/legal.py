"""What a parameter may be: a check, a JSON Schema and a sentence of each kind, from one description.

A bound may depend on the server: it is a number, or a function of the ServerConfig.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from led_sglang.config.checks import require_choice, require_flag, require_int, require_number, require_text

if TYPE_CHECKING:
    from led_sglang.config.server import ServerConfig

__all__ = ["Choice", "Choices", "Flag", "Integer", "Legal", "Real", "Text"]


class Legal(Protocol):
    """The legal values of one parameter."""

    def check(self, name: str, value: object, config: ServerConfig) -> None:
        """Raises LedParamError where `value` is not legal on a server of this configuration."""

    def schema(self, config: ServerConfig) -> dict[str, Any]:
        """JSON Schema (2020-12) of the same; it cannot say that 8.0 is no integer."""

    def describe(self) -> str:
        """For documentation: `1 .. --led-max-depth`."""


@dataclass(frozen=True)
class Integer:
    low: int
    high: int | Callable[[ServerConfig], int]
    why: str = ""  # of the upper bound, in an error
    high_name: str = ""  # of a bound that depends on the server, in documentation

    def highest(self, config: ServerConfig) -> int:
        return self.high(config) if callable(self.high) else self.high

    def check(self, name: str, value: object, config: ServerConfig) -> None:
        require_int(name, value, self.low, self.highest(config), self.why)

    def schema(self, config: ServerConfig) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.highest(config)}

    def describe(self) -> str:
        if not self.high_name and self.high == self.low + 1:
            return f"{self.low}, {self.high}"
        return f"{self.low} .. {self.high_name or self.high}"


@dataclass(frozen=True)
class Real:
    low: float
    high: float

    def check(self, name: str, value: object, config: ServerConfig) -> None:
        require_number(name, value, self.low, self.high)

    def schema(self, config: ServerConfig) -> dict[str, Any]:
        return {"type": "number", "minimum": self.low, "maximum": self.high}

    def describe(self) -> str:
        return f"{self.low:g} .. {self.high:g}"


@dataclass(frozen=True)
class Flag:
    def check(self, name: str, value: object, config: ServerConfig) -> None:
        require_flag(name, value)

    def schema(self, config: ServerConfig) -> dict[str, Any]:
        return {"type": "boolean"}

    def describe(self) -> str:
        return "bool"


@dataclass(frozen=True)
class Choice:
    values: tuple[str, ...]
    offered: Callable[[ServerConfig], tuple[str, ...]] | None = None  # those that the server has; None: all

    def check(self, name: str, value: object, config: ServerConfig) -> None:
        require_choice(name, value, self.values)

    def schema(self, config: ServerConfig) -> dict[str, Any]:
        return {"enum": list(self.values if self.offered is None else self.offered(config))}

    def describe(self) -> str:
        return ", ".join(f'`"{value}"`' for value in self.values)


@dataclass(frozen=True)
class Choices:
    """Several of the values."""

    values: tuple[str, ...]

    def check(self, name: str, value: object, config: ServerConfig) -> None:
        for item in cast(tuple[object, ...], value):
            require_choice(name, item, self.values)

    def schema(self, config: ServerConfig) -> dict[str, Any]:
        return {"type": "array", "items": {"enum": list(self.values)}, "uniqueItems": True}

    def describe(self) -> str:
        return "of " + ", ".join(f"`{value}`" for value in self.values)


@dataclass(frozen=True)
class Text:
    def check(self, name: str, value: object, config: ServerConfig) -> None:
        require_text(name, value)

    def schema(self, config: ServerConfig) -> dict[str, Any]:
        return {"type": "string"}

    def describe(self) -> str:
        return "text"
