"""The samplers of few tokens draw what SGLang's own of the whole vocabulary draw from."""

from itertools import product
from typing import Any

import pytest
import torch
from sglang.srt.layers import sampler
from torch import Tensor

from led_sglang.cpu_platform import sampling

NAME = "top_k_top_p_min_p_sampling_from_probs_torch"
VOCAB_SIZE = 6000
EVERY = 1 << 30  # SGLang's top_k of -1


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Columns that each draw sorted, whose weights are compared instead of a draw."""
    seen: list[int] = []

    def weights_of(probs: Tensor, num_samples: int) -> Tensor:
        seen.append(probs.shape[1])
        raise Weights(probs.clone())

    original = getattr(sampler, NAME)
    monkeypatch.setattr(sampler, NAME, getattr(original, "__wrapped__", original))
    plain = sampler.sampling_from_probs_torch
    monkeypatch.setattr(sampler, "sampling_from_probs_torch", getattr(plain, "__wrapped__", plain))
    monkeypatch.setattr(torch, "multinomial", weights_of)
    return seen


class Weights(Exception):
    @property
    def of_every_token(self) -> Tensor:
        probs: Tensor = self.args[0]
        return torch.nn.functional.pad(probs, (0, VOCAB_SIZE - probs.shape[1]))


def weights(probs: Tensor, top_k: list[int], top_p: list[float], min_p: list[float], most: int | None) -> Tensor:
    rows = [torch.tensor(values) for values in (top_k, top_p, min_p)]
    with pytest.raises(Weights) as caught:
        getattr(sampler, NAME)(probs.clone(), *rows, any(min_p), None, torch.arange(len(probs)), max_top_k=most)
    return caught.value.of_every_token


CASES: list[tuple[Any, Any, Any, int | None]] = [
    *product([EVERY, 50], [0.95, 0.3, 1.0], [0.0, 0.1], [None]),
    (20, 0.95, 0.0, 20),
    (3000, 0.5, 0.0, 3000),
    (3000, 1.0, 0.0, 3000),
]


@pytest.mark.parametrize(("top_k", "top_p", "min_p", "most"), CASES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 6.0])
def test_the_same_tokens_are_left(
    scale: float, top_k: int, top_p: float, min_p: float, most: int | None, widths: list[int]
) -> None:
    probs = (scale * torch.randn(3, VOCAB_SIZE, generator=torch.Generator().manual_seed(2))).softmax(-1)
    settings = ([top_k, EVERY, top_k] if most is None else [top_k] * 3), [top_p] * 3, [min_p] * 3
    expected = weights(probs, *settings, most)
    sampling.install()
    found = weights(probs, *settings, most)
    if scale:  # which of equal tokens come first is not said
        assert torch.equal(found, expected)
    assert torch.equal(found.sum(-1) > 0, expected.sum(-1) > 0)
    assert widths[1] <= widths[0]


@pytest.mark.parametrize(("scale", "few"), [(6.0, True), (0.1, False)])
def test_few_are_sorted_where_few_are_left(scale: float, few: bool, widths: list[int]) -> None:
    probs = (scale * torch.randn(2, VOCAB_SIZE, generator=torch.Generator().manual_seed(3))).softmax(-1)
    sampling.install()
    weights(probs, [EVERY] * 2, [0.95] * 2, [0.0] * 2, None)
    assert widths == [sampling.NUM_SORTED if few else VOCAB_SIZE]


def test_one_row_that_needs_all_is_enough(widths: list[int]) -> None:
    sampling.install()
    flat, sharp = torch.full((VOCAB_SIZE,), 1 / VOCAB_SIZE), torch.eye(VOCAB_SIZE)[0]
    for rows in ((sharp, flat), (flat, sharp)):
        weights(torch.stack(rows), [EVERY] * 2, [0.95] * 2, [0.0] * 2, None)
    assert widths == [VOCAB_SIZE] * 2
    sampling.install()  # a second time wraps nothing
    assert not hasattr(getattr(sampler, NAME).__wrapped__, "__wrapped__")


@pytest.mark.parametrize("vocab_size", [1, 7, sampling.PART, sampling.PART + 1, 3 * sampling.PART + 5])
def test_the_law_of_a_draw_without_filters(vocab_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uniform numbers on a grid give each token its share of them, to one of the grid; no weight, none."""
    weights = torch.rand(vocab_size, generator=torch.Generator().manual_seed(4))
    weights[1::3] = 0.0
    num_draws = 20_000
    grid = (torch.arange(num_draws, dtype=torch.float64) + 0.5) / num_draws
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype: grid.view(shape))
    tokens = sampling.draw(5 * weights.expand(num_draws, -1))
    counts = torch.bincount(tokens, minlength=vocab_size)
    assert (counts - num_draws * weights.double() / weights.double().sum()).abs().max() < 1.01
    assert not counts[weights == 0].any()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_uniform_numbers(uniform: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.zeros(64, 2 * sampling.PART + 9)
    rows[:, sampling.PART - 3 : sampling.PART + 3] = torch.rand(64, 6, generator=torch.Generator().manual_seed(5)) + 0.1
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype: torch.full(shape, uniform, dtype=dtype))
    expected = sampling.PART - 3 if uniform == 0 else sampling.PART + 2
    assert sampling.draw(rows).tolist() == [expected] * 64


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_nothing_to_draw_from(value: float) -> None:
    weights = torch.rand(2, 10)
    weights[1] = value
    with pytest.raises(RuntimeError, match="nothing to draw from"):
        sampling.draw(weights)


def test_sglangs_sampler_without_filters_draws_so(widths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """With seeds it is SGLang's own: what a seed gives is the same on every platform."""
    seeds = torch.tensor([1, 2])
    monkeypatch.setattr(sampler, "sampling_from_probs_torch", lambda *arguments: arguments)
    sampling.install()
    probs = torch.eye(VOCAB_SIZE)[[5, 2000]]
    tokens = sampler.sampling_from_probs_torch(probs)
    assert tokens.tolist() == [5, 2000] and tokens.dtype == torch.int32 and not widths
    passed_on = sampler.sampling_from_probs_torch(probs, seeds, None)
    assert passed_on[0] is probs and passed_on[1] is seeds
