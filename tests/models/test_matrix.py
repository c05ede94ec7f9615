"""Every architecture of the zoo: the captured layers are those that transformers computes in float64.

A model runner in a forked process, without HTTP and scheduler: what is judged is the buffer behind a prefill of several
prompts and behind a decode step. Without --full one of each kind runs, `make test-all` runs the matrix.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.models.farm import Farm
from tests.models.judge import TOLERANCE
from tests.models.zoo import ENTRIES, MAX_DEPTH

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]
CAPTURED = list(range(12 - MAX_DEPTH, 12))
WITH_RANKS = [name for name, row in ENTRIES.items() if row.has_ranks]  # one of each ending, kind of head and of layer


def rows() -> list[object]:
    """The quick ones run always, in `make test` too."""
    marks = {True: pytest.mark.quick, False: pytest.mark.full}
    return [pytest.param(name, marks=marks[row.is_quick]) for name, row in ENTRIES.items()]


def require(answer: dict[str, object], name: str) -> None:
    entry = ENTRIES[name]
    assert "refusal" not in answer, answer
    assert answer["class"] == entry.model_class
    assert answer["captured"] == CAPTURED
    found = answer["start_check"]
    assert isinstance(found, dict) and found["ending"] == entry.ending
    assert answer["layers"] < TOLERANCE, answer  # type: ignore[operator]
    assert (answer["final"] < TOLERANCE) == entry.is_final_same, answer  # type: ignore[operator]
    assert answer["shifted"] > 100 * TOLERANCE, "the layer before would have passed"  # type: ignore[operator]


@pytest.mark.parametrize("name", rows())
def test_layers(name: str, farm: Farm, checkpoint: Callable[[str], Path]) -> None:
    require(farm.judge(name, checkpoint(name)), name)


@pytest.mark.full
@pytest.mark.parametrize("name", WITH_RANKS)
def test_layers_of_two_ranks(name: str, farm: Farm, checkpoint: Callable[[str], Path]) -> None:
    require(farm.judge(name, checkpoint(name), ranks=2), name)


@pytest.mark.full
@pytest.mark.parametrize("name", ["qwen3", "granite", "gemma3", "olmo2"])
def test_half_precision_passes_the_start_check(name: str, farm: Farm, checkpoint: Callable[[str], Path]) -> None:
    """The numbers are those of a rounding, and the limits far above them."""
    answer = farm.judge(name, checkpoint(name), "--dtype", "bfloat16")
    assert answer["start_check"]["ending"] == ENTRIES[name].ending
    assert answer["start_check"]["norm_error"] < 0.3 * answer["start_check"]["norm_limit"]
    assert answer["start_check"]["shifted_norm_error"] > 3 * answer["start_check"]["norm_limit"]
    assert answer["start_check"]["logits_error"] < 0.3 * answer["start_check"]["logits_limit"]
