"""What a start must not let pass is refused, with class, layer, error and limit: each fault planted in a real start."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.models.breakages import BREAKAGES
from tests.models.farm import Farm

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]
CAUGHT = {  # the model and what the refusal says
    "shifted layers": ("qwen3", r"eager prefill step .* layer \d+ is off by 0\.\d+, the limit is 0\."),
    "sum alone": ("cohere2", r"residual stream of Cohere2ForCausalLM: .*layer 12's .* by 0\.\d+, the limit is 0\.0001"),
    "first alone": ("granite", r"residual stream of GraniteForCausalLM: .* the limit is 0\.0001"),
    "no residual": ("gemma3", r"residual stream of Gemma3ForCausalLM: .* the limit is 0\.0001"),
    "other rows": ("qwen3", r"eager prefill step .* is off by"),
    "no write in a replay": ("qwen3", r"layer \d+ is off by inf, the limit is 0\.02"),
    "a bias": ("qwen3", r"LM head of Qwen3ForCausalLM: .* the limit is 0\.001"),
    "a scale": ("granite", r"LM head of GraniteForCausalLM: .* the limit is 0\.001"),
    "a whole head as a shard": ("gemma3", r"LM head of Gemma3ForCausalLM: .* the limit is 0\.001"),
}
QUICK = ("shifted layers", "sum alone", "no write in a replay", "a bias")


def test_every_breakage_is_tried() -> None:
    assert set(CAUGHT) == set(BREAKAGES)


@pytest.mark.parametrize(
    "breakage", [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in CAUGHT]
)
def test_it_is_refused(breakage: str, farm: Farm, checkpoint: Callable[[str], Path]) -> None:
    name, words = CAUGHT[breakage]
    answer = farm.judge(name, checkpoint(name), breakage=breakage)
    with pytest.raises(ValueError, match=words):
        raise ValueError(answer.get("refusal", "it started"))
    assert "--led-max-depth 1 --led-depth 1" in answer["refusal"]
