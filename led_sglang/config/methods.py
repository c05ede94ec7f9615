"""The table of decoding methods: name, the layers that one captures, and what it does to a step.

A method that rewrites the final logits is one row here, its parameters in `config.fields`, and one file of
`led_sglang.ops.methods` with the function that the row names. Layers are 1-based: h^l is the residual stream after
layer l, h^L the last; the final layer itself is the engine's and is not captured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from led_sglang.config.fields import LedParams
    from led_sglang.config.server import ServerConfig

__all__ = ["METHODS", "METHOD_TABLE", "Method", "captured_layers"]

Layers = Callable[["ServerConfig", "LedParams | None"], tuple[int, ...]]


def _no_layers(config: "ServerConfig", params: "LedParams | None") -> tuple[int, ...]:
    return ()


@dataclass(frozen=True)
class Method:
    """One way to decode a request's tokens."""

    name: str
    # The captured layers of a request with these parameters, None = of any request, in the order in which the method
    # reads them.
    layers: Layers = _no_layers
    # Below led_sglang.ops.methods: (MethodRows) -> (n, V) logits, from which the engine samples. None: the step itself
    # knows the method.
    rewrite: str | None = None
    feeds_mixtures: bool = False  # its next input is a mixture of embeddings
    is_always_enabled: bool = False


def led_layers(config: "ServerConfig", params: "LedParams | None" = None) -> tuple[int, ...]:
    """h^{L-1} downwards."""
    last = _num_layers(config) - 1
    return tuple(range(last, last - config.num_captured, -1))


def confident_layers(config: "ServerConfig", params: "LedParams | None" = None) -> tuple[int, ...]:
    """h^{L-1} downwards, one less than are scanned."""
    last = _num_layers(config) - 1
    return tuple(range(last, max(last - config.confident_layers + 1, 0), -1))


def dola_layers(config: "ServerConfig", params: "LedParams | None" = None) -> tuple[int, ...]:
    """DoLa's early layers: every second one of the lower or upper 20, or half of a small model."""
    last = _num_layers(config)
    width = 20 if last > 20 else last // 2
    halves = {"low": tuple(range(2, width + 1, 2)), "high": tuple(range(last - width + 1, last, 2))}
    return halves[params.layers] if params is not None else tuple(dict.fromkeys(halves["low"] + halves["high"]))


def sled_layers(config: "ServerConfig", params: "LedParams | None" = None) -> tuple[int, ...]:
    """Every layer below the last."""
    return tuple(range(1, _num_layers(config)))


def _num_layers(config: "ServerConfig") -> int:
    assert config.num_layers is not None
    return config.num_layers


METHOD_TABLE: dict[str, Method] = {
    method.name: method
    for method in (
        Method("led", led_layers, is_always_enabled=True),  # arXiv 2602.01698
        Method("none", is_always_enabled=True),
        Method("dola", dola_layers, rewrite="dola.rewrite"),  # arXiv 2309.03883
        Method("soft_thinking", feeds_mixtures=True),  # arXiv 2505.15778
        Method("soft_thinking_gumbel", feeds_mixtures=True),  # arXiv 2508.03440
        Method("confident", confident_layers, rewrite="confident.rewrite"),  # arXiv 2606.21906
        Method("sled", sled_layers, rewrite="sled.rewrite"),  # arXiv 2411.02433
    )
}
METHODS = tuple(METHOD_TABLE)  # in the order of their counters


def captured_layers(config: "ServerConfig") -> tuple[int, ...]:
    """Every layer that an enabled method needs: LED's first and in its order, then the others."""
    enabled = [method for name, method in METHOD_TABLE.items() if name in config.methods]
    return tuple(dict.fromkeys(layer for method in enabled for layer in method.layers(config, None)))
