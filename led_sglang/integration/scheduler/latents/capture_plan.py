"""Which layers each method needs. Layers are 1-based: h^l is the residual stream after layer l, h^L the last."""

from led_sglang.config.fields import CONFIDENT_LAYERS
from led_sglang.config.server import ServerConfig


def led_layers(config: ServerConfig) -> tuple[int, ...]:
    """h^{L-1} downwards."""
    last = _num_layers(config) - 1
    return tuple(range(last, last - config.num_captured, -1))


def confident_layers(config: ServerConfig) -> tuple[int, ...]:
    """h^{L-1} downwards; the final layer itself is the engine's."""
    last = _num_layers(config) - 1
    return tuple(range(last, max(last - CONFIDENT_LAYERS + 1, 0), -1))


def dola_layers(config: ServerConfig, half: str) -> tuple[int, ...]:
    """DoLa's early layers (arXiv 2309.03883): every second one of the lower or upper 20, or half of a small model."""
    last = _num_layers(config)
    width = 20 if last > 20 else last // 2
    return tuple(range(2, width + 1, 2)) if half == "low" else tuple(range(last - width + 1, last, 2))


def captured_layers(config: ServerConfig) -> tuple[int, ...]:
    """Every layer that an enabled method needs: LED's first and in its order, then the others."""
    layers = list(led_layers(config)) if "led" in config.methods else []
    if "confident" in config.methods:
        layers += confident_layers(config)
    if "dola" in config.methods:
        layers += dola_layers(config, "low") + dola_layers(config, "high")
    return tuple(dict.fromkeys(layers))


def _num_layers(config: ServerConfig) -> int:
    assert config.num_layers is not None
    return config.num_layers
