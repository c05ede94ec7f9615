"""A model that LED cannot read is refused by name, in one sentence, with the way out."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from led_sglang.integration.faults import CaptureError
from led_sglang.integration.scheduler.latents.decoder import WAY_OUT, find_decoder
from led_sglang.integration.scheduler.latents.start_check import StartCheck
from led_sglang.integration.scheduler.latents.watch import Norm, Seen

NUM_LAYERS, HIDDEN = 3, 4


class OddModel(nn.Module):
    def __init__(self, **lists: int) -> None:
        super().__init__()
        for name, length in lists.items():
            setattr(self, name, nn.ModuleList([nn.Linear(HIDDEN, HIDDEN) for _ in range(length)]))


@pytest.mark.parametrize(
    ("lists", "named"),
    [({"blocks": 2}, "none"), ({"layers": 3, "others": 3}, "layers, others"), ({"visual": 3}, "none")],
)
def test_a_model_without_one_list_of_its_layers(lists: dict[str, int], named: str) -> None:
    with pytest.raises(CaptureError, match=f"decoder of OddModel: lists of 3 layers: {named}.* --led-max-depth 1"):
        find_decoder(OddModel(**lists), NUM_LAYERS)


def test_the_decoder_is_the_outermost_list_and_no_vision_tower() -> None:
    name, layers = find_decoder(OddModel(layers=3, visual_layers=3), NUM_LAYERS)
    assert name == "layers" and len(layers) == NUM_LAYERS


def checked(**changes: Any) -> tuple[StartCheck, Seen]:
    """A check of layers that add one each, and what a forward of them would have shown."""
    model = OddModel(layers=NUM_LAYERS)
    capture = SimpleNamespace(
        layers=(2,), decoder=model.layers, decoder_name="layers", indices_here=[0, 1, 2], ending=None, final_norm=None
    )
    states = torch.arange(1.0, 1 + NUM_LAYERS)[:, None, None] * torch.randn(1, 2, HIDDEN).exp()
    layers = {index: {"first": (state,)} for index, state in enumerate(states)}
    norm = Norm("norm", lambda hidden: hidden + 1)
    seen = Seen([0, 1, 2], layers, [(norm, states[-1] + 1)], states[-1] + 1)
    for name, value in changes.items():
        setattr(seen, name, value)
    return StartCheck(SimpleNamespace(model=model), capture), seen  # type: ignore[arg-type]


def run(check: StartCheck, seen: Seen) -> None:
    check._require_order(seen)
    check._find_norm(seen)
    check._find_scale(seen)


def test_what_is_read_rightly_passes() -> None:
    check, seen = checked()
    run(check, seen)
    assert (check.numbers["ending"], check.numbers["final_norm"], check.head_scale) == ("first", "norm", 1.0)


OTHER = Norm("norm", lambda hidden: 2 * hidden)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a layer that runs twice": ({"order": [0, 1, 1, 2]}, r"ran in the order \[1, 2, 2, 3\] instead of each once"),
    "layers that nobody calls": ({"order": []}, r"ran in the order \[\]"),
    "no norm behind the last layer": ({"norms": []}, "finds no norm behind the last layer of OddModel"),
    "a norm of something else": ({"norms": [(OTHER, torch.zeros(2, HIDDEN))]}, "cannot read the residual stream"),
    "another shape": ({"norms": [(OTHER, torch.zeros(3, HIDDEN))]}, "differs from what it gave in the model by inf"),
    "a head that is given something else": ({"head_input": torch.eye(2, HIDDEN)}, "is not given a multiple"),
    "a head that is given other rows": ({"head_input": torch.zeros(1, HIDDEN)}, r"is given \(1, 4\), the final norm"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_read_wrongly_is_refused(name: str) -> None:
    changes, words = REFUSED[name]
    check, seen = checked(**changes)
    with pytest.raises(CaptureError, match=words) as caught:
        run(check, seen)
    assert "OddModel" in str(caught.value) and str(caught.value).endswith(WAY_OUT)


def test_layers_that_cannot_be_told_apart() -> None:
    check, seen = checked()
    seen.layers[1] = seen.layers[2]
    with pytest.raises(CaptureError, match="cannot tell the last two layers of OddModel apart"):
        run(check, seen)
