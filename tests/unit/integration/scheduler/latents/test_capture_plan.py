"""Which layers each method reads, by hand."""

import pytest

from led_sglang.config.fields import LedParams
from led_sglang.config.methods import METHODS, captured_layers, confident_layers, dola_layers, led_layers, sled_layers
from led_sglang.config.server import ServerConfig


def config(num_layers: int, methods: tuple[str, ...] = ("led",), max_depth: int = 8) -> ServerConfig:
    return ServerConfig(num_layers=num_layers, methods=methods, max_depth=max_depth)


def test_led_takes_the_layers_below_the_last() -> None:
    assert led_layers(config(12, max_depth=4)) == (11, 10, 9, 8)  # depth 4 with latent_offset 1 reaches h^8
    assert led_layers(config(12, max_depth=12)) == (11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1)
    assert led_layers(config(2, max_depth=2)) == (1,)
    assert led_layers(config(1, max_depth=1)) == ()


def test_confident_scans_ten_layers_with_the_final_one() -> None:
    assert confident_layers(config(36)) == (35, 34, 33, 32, 31, 30, 29, 28, 27)
    assert confident_layers(config(4)) == (3, 2, 1)
    assert confident_layers(config(1)) == ()


def test_sled_takes_every_layer_below_the_last() -> None:
    assert sled_layers(config(12)) == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    assert sled_layers(config(1)) == ()


@pytest.mark.parametrize(
    ("num_layers", "low", "high"),
    [
        (12, (2, 4, 6), (7, 9, 11)),
        (8, (2, 4), (5, 7)),
        (20, (2, 4, 6, 8, 10), (11, 13, 15, 17, 19)),
        (36, (2, 4, 6, 8, 10, 12, 14, 16, 18, 20), (17, 19, 21, 23, 25, 27, 29, 31, 33, 35)),
        (5, (2,), (4,)),
        (1, (), ()),
    ],
)
def test_dola_takes_every_second_layer_of_a_half(num_layers: int, low: tuple[int, ...], high: tuple[int, ...]) -> None:
    assert dola_layers(config(num_layers), LedParams(layers="low")) == low
    assert dola_layers(config(num_layers), LedParams(layers="high")) == high


@pytest.mark.parametrize("num_layers", [1, 2, 3, 12, 21, 36, 64])
def test_no_layer_is_captured_twice_and_the_last_never(num_layers: int) -> None:
    layers = captured_layers(config(num_layers, METHODS, max_depth=min(8, num_layers)))
    assert len(set(layers)) == len(layers)
    assert all(1 <= layer < num_layers for layer in layers)


def test_led_comes_first_and_in_its_order() -> None:
    """The sampler hands LED the first rows of the buffer."""
    both = config(36, ("dola", "confident", "led"))
    assert captured_layers(both)[:8] == led_layers(both) == (35, 34, 33, 32, 31, 30, 29, 28)


def test_only_what_is_enabled_is_captured() -> None:
    assert captured_layers(config(12, ("soft_thinking",))) == ()
    assert captured_layers(config(12, ("none",))) == ()
    assert captured_layers(config(12, ("dola",))) == (2, 4, 6, 7, 9, 11)
    assert captured_layers(config(12, ("led", "confident"), max_depth=2)) == (11, 10, 9, 8, 7, 6, 5, 4, 3)
    assert captured_layers(config(6, ("led", "sled"), max_depth=2)) == (5, 4, 1, 2, 3)
