"""Soft Thinking and its Gumbel variant against the float64 reference, by hand, on hostile rows, and as a sampler."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from led_sglang.ops.methods.reference import cold_stop_row, soft_row
from led_sglang.ops.methods.soft_thinking import Filters, SoftStep, cold_stop, soft_mixture
from tests.unit.ops.cases.method_cases import columns, mix

INF, NAN = torch.inf, torch.nan
FINAL = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()


def close(actual: Tensor, expected: list[Any]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def assert_agrees(step: SoftStep, logits: Tensor, settings: tuple[Any, ...], noise: Tensor | None) -> None:
    tau, greedy, max_topk, gumbel = (torch.as_tensor(value).expand(len(logits)).tolist() for value in settings)
    for r, row in enumerate(logits.float()):
        uniforms = None if noise is None else noise[r].tolist()
        expected = soft_row(row.tolist(), 1.0 if greedy[r] else tau[r], max_topk[r], gumbel[r], uniforms)
        assert step.ok[r].item() == (expected is not None)
        if expected is None:
            continue
        ids, weights, entropy = expected
        assert step.ids[r, : len(ids)].tolist() == ids
        close(step.weights[r], weights + [0.0] * (step.weights.shape[1] - len(ids)))
        assert step.entropy[r].item() == pytest.approx(entropy, abs=1e-5)


def filters(num_rows: int, top_k: Any = 1 << 30, top_p: Any = 1.0, min_p: Any = 0.0, is_first: Any = True) -> Filters:
    values = (top_k, torch.int64), (top_p, torch.float32), (min_p, torch.float32), (is_first, torch.bool)
    return Filters(*(torch.as_tensor(value, dtype=dtype).expand(num_rows) for value, dtype in values))


def soft_filtered(logits: Tensor, used: Filters, max_topk: Any = 4, max_k: int = 4, **settings: Any) -> SoftStep:
    values = {"temperature": 1.0, "greedy": False, "gumbel": 0.0} | settings
    columns_ = columns(len(logits), values["temperature"], values["greedy"], max_topk, values["gumbel"])
    return soft_mixture(logits, *columns_, values.get("noise"), max_k, used)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, 4),
        ({"top_k": 2}, 2),
        ({"top_k": 1}, 1),
        ({"top_p": 0.5}, 1),  # the first token alone has it
        ({"top_p": 0.51}, 2),
        ({"top_p": 0.9}, 3),
        ({"top_p": 0.01}, 1),
        ({"min_p": 0.5}, 2),  # .5, .3 of .5, .3, .15, .05
        ({"min_p": 1.0}, 1),
        ({"top_k": 3, "top_p": 0.8}, 2),  # of what top-k leaves, .5 + .3 are .842
        ({"top_k": 3, "top_p": 0.85}, 3),
        ({"top_k": 2, "top_p": 0.2, "min_p": 0.9, "is_first": False}, 4),
    ],
)
def test_filters_first_by_hand(settings, kept):
    probs = [0.5, 0.3, 0.15, 0.05][:kept]
    step = soft_filtered(FINAL, filters(1, **settings))
    close(step.weights, [[p / sum(probs) for p in probs] + [0.0] * (4 - kept)])
    close(step.entropy, [1.142121])  # of the full posterior


@pytest.mark.parametrize("vocab", [201, 6])
@pytest.mark.parametrize("has_noise", [False, True])
def test_filters_first_agree_with_the_reference(vocab, has_noise):
    logits, settings, noise = random_inputs(vocab=vocab)
    rng = torch.Generator().manual_seed(5)
    top_k = torch.tensor([1, 3, 20, 1 << 30, 64]).repeat(7)[:33]
    top_p, min_p = torch.rand(33, generator=rng).clamp_min(0.05), torch.rand(33, generator=rng) * 0.2
    is_first = torch.arange(33) % 4 > 0
    used = Filters(top_k, top_p, min_p, is_first)
    step = soft_mixture(logits, *settings, noise if has_noise else None, 10, used)
    plain = soft_mixture(logits, *settings, noise if has_noise else None, 10)
    for r in range(33):
        tau, greedy, max_topk, gumbel = (setting[r].item() for setting in settings)
        row_filters = (int(top_k[r]), top_p[r].item(), min_p[r].item()) if is_first[r] else None
        uniforms = noise[r].tolist() if has_noise else None
        expected = soft_row(logits[r].tolist(), 1.0 if greedy else tau, max_topk, gumbel, uniforms, row_filters)
        assert expected is not None
        ids, weights, _ = expected
        assert step.ids[r, : len(ids)].tolist() == ids
        close(step.weights[r], weights + [0.0] * (10 - len(ids)))
    assert torch.equal(step.weights[~is_first], plain.weights[~is_first]), "a neighbour's filters act on other rows"
    assert not torch.equal(step.weights[is_first], plain.weights[is_first])


def test_by_hand():
    step = mix(FINAL)
    assert step.ids[0, :2].tolist() == [0, 1] and step.ok.all()
    close(step.weights, [[0.625, 0.375, 0.0]])
    close(step.entropy, [1.142121])  # of all four tokens


def test_temperature_by_hand():
    # p^2 = .25 .09 .0225 .0025 over .365; entropy of all four
    step = mix(FINAL, temperature=0.5)
    close(step.weights, [[0.735294, 0.264706, 0.0]])
    probs = [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]
    close(step.entropy, [-sum(p * math.log(p) for p in probs)])
    close(mix(FINAL, temperature=0.5, greedy=True).weights, [[0.625, 0.375, 0.0]])


def test_gumbel_by_hand():
    # Noise 0 and 2 at temperature .5: weights as .5^2 = .25 and .3^2 e^4 = 4.913834, so the second is heaviest.
    noise = torch.tensor([[math.exp(-1), math.exp(-math.exp(-2)), 0.5]], dtype=torch.float64)
    step = mix(FINAL, gumbel=0.5, noise=noise)
    assert step.ids[0, :2].tolist() == [1, 0]
    close(step.weights, [[0.951585, 0.048415, 0.0]])
    close(step.entropy, [1.142121])  # noise does not touch it
    plain = mix(FINAL, gumbel=0.0, noise=noise)
    close(plain.weights, [[0.625, 0.375, 0.0]])


def random_inputs(num_rows: int = 33, vocab: int = 201, max_k: int = 10) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(num_rows, vocab, generator=rng) * 3
    settings = (
        torch.rand(num_rows, generator=rng) + 0.1,
        torch.rand(num_rows, generator=rng) < 0.3,
        torch.randint(1, max_k + 1, (num_rows,), generator=rng),
        torch.rand(num_rows, generator=rng) * (torch.rand(num_rows, generator=rng) < 0.7),
    )
    return logits, settings, torch.rand(num_rows, max_k, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("has_noise", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [201, 6])
def test_agrees_with_the_reference(has_noise, dtype, vocab):
    logits, settings, noise = random_inputs(vocab=vocab)
    logits = logits if dtype == torch.float32 else distinct_in_bfloat16(*logits.shape)
    used = noise if has_noise else None
    step = mix(logits, *settings, used, 10)
    assert step.ids.shape == step.weights.shape == (33, 10) and step.weights.dtype == torch.float32
    assert_agrees(step, logits, settings, used)
    close(step.weights.sum(-1), [1.0] * 33)
    assert (step.weights.diff(dim=-1) <= 0).all() and (step.ids < vocab).all()


def distinct_in_bfloat16(num_rows: int, vocab: int) -> Tensor:
    """Integers up to 256 are exact there: without ties the order is the only one."""
    order = torch.stack([torch.randperm(vocab, generator=torch.Generator().manual_seed(r)) for r in range(num_rows)])
    return (order / 16).to(torch.bfloat16)


def test_one_token_is_the_plain_token():
    logits, settings, noise = random_inputs()
    for used in (None, noise):
        step = mix(logits, *settings[:2], 1, settings[3], used, 10)
        assert torch.equal(step.ids[:, 0], logits.argmax(-1))
        assert torch.equal(step.weights[:, 0], torch.ones(33)) and not step.weights[:, 1:].any()


def test_forbidden_tokens_weigh_nothing():
    logits, settings, noise = random_inputs()
    logits[:, 3:] = -INF
    logits[7, 1:] = -INF
    step = mix(logits, *settings, noise, 10)
    assert_agrees(step, logits, settings, noise)
    assert not step.weights[step.ids >= 3].any()
    assert step.weights[7, 0] == 1 and step.entropy[7] == 0


def test_ties_share_equally():
    step = mix(torch.zeros(2, 50), max_topk=4, max_k=5)
    close(step.weights, [[0.25] * 4 + [0.0]] * 2)
    assert all(len(set(row)) == 5 for row in step.ids.tolist())
    close(step.entropy, [math.log(50)] * 2)


def test_broken_rows_are_told_and_poison_nothing():
    logits, settings, noise = random_inputs(6)
    logits[0, 3], logits[1, 3], logits[2] = NAN, INF, -INF
    for used in (None, noise):
        step = mix(logits, *settings, used, 10)
        assert step.ok.tolist() == [False] * 3 + [True] * 3
        assert step.weights.isfinite().all() and step.ids.ge(0).all() and step.ids.lt(201).all()
        close(step.weights.sum(-1), [1.0] * 6)
        assert_agrees(step, logits, settings, used)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_the_noise_stay_finite(dtype):
    ends = torch.tensor([[0.0, 0.0, 0.0], [1 - 2.0**-53] * 3, [0.0, 1 - 2.0**-24, 0.5]], dtype=dtype)
    step = mix(FINAL.expand(3, 4), max_topk=3, gumbel=[0.5, 0.5, 0.01], noise=ends)
    assert step.ok.all() and step.weights.isfinite().all()
    assert step.ids[2, 0] == 1
    for r in (0, 1):  # equal noise on all: only the temperature shows
        close(step.weights[r], [w / 0.3625 for w in (0.25, 0.09, 0.0225)])


def test_the_heaviest_token_is_a_sample_of_the_top_k():
    """Gumbel-max: P(heaviest = i) = p_i / sum of the top-k. Chi-square with 2 degrees, false alarm 1e-6."""
    num_rows = 20_000
    noise = torch.rand(num_rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = mix(FINAL.expand(num_rows, 4), max_topk=3, gumbel=0.5, noise=noise)
    counts = step.ids[:, 0].bincount(minlength=4).double()
    expected = torch.tensor([0.5, 0.3, 0.15], dtype=torch.float64) / 0.95 * num_rows
    assert counts[3] == 0
    assert ((counts[:3] - expected) ** 2 / expected).sum() < 27.6


def test_inputs_untouched_and_no_rows():
    logits, settings, noise = random_inputs()
    inputs = (logits, *settings, noise)
    before = [tensor.clone() for tensor in inputs]
    mix(logits, *settings, noise, 10)
    assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))
    empty = mix(logits[:0], noise=noise[:0, :3])
    assert empty.ids.shape == (0, 3) and empty.ok.shape == (0,)


def test_never_waits_for_the_device():
    logits, settings, noise = random_inputs()
    used = Filters(*(getattr(filters(33), name).to("meta") for name in ("top_k", "top_p", "min_p", "is_first")))
    step = soft_mixture(logits.to("meta"), *(s.to("meta") for s in settings), noise.to("meta"), 10, used)
    assert step.ids.shape == (33, 10)
    assert cold_stop(step.entropy, settings[2].to("meta"), settings[0].to("meta"), settings[2].to("meta"))[1].is_meta


def run_cold_stop(entropies: Tensor, threshold: float, length: int) -> list[int | None]:
    """(T, R) -> the first step at which each row stops."""
    num_rows = entropies.shape[1]
    count, first = torch.zeros(num_rows, dtype=torch.int64), [None] * num_rows
    for step, values in enumerate(entropies):
        count, stop = cold_stop(values, count, torch.full((num_rows,), threshold), torch.full((num_rows,), length))
        first = [step if f is None and s else f for f, s in zip(first, stop.tolist(), strict=True)]
    return first


def test_cold_stop_counts_consecutive_steps():
    entropies = torch.tensor([[0.0, 0.0, 0.01], [0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, NAN, 0.0], [0.0, 0.0, 0.0]])
    assert run_cold_stop(entropies, 0.01, 3) == [None, 2, 3]
    assert run_cold_stop(entropies, 0.01, 1) == [0, 0, 1]
    assert run_cold_stop(entropies, 0.0, 1) == [None] * 3  # a threshold of 0 never stops


@pytest.mark.parametrize("length", [1, 2, 5])
def test_cold_stop_agrees_with_the_reference(length):
    entropies = torch.rand(40, 17, generator=torch.Generator().manual_seed(length))
    expected = [cold_stop_row(row.tolist(), 0.5, length) for row in entropies.T]
    assert run_cold_stop(entropies, 0.5, length) == expected and any(expected)


MUTATIONS = {
    "temperature ignored": lambda tau, greedy, k, gumbel: (torch.ones_like(tau), greedy, k, gumbel),
    "greedy rows heated": lambda tau, greedy, k, gumbel: (tau, torch.zeros_like(greedy), k, gumbel),
    "one token too many": lambda tau, greedy, k, gumbel: (tau, greedy, k + 1, gumbel),
    "noise forgotten": lambda tau, greedy, k, gumbel: (tau, greedy, k, torch.zeros_like(gumbel)),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_is_seen(name):
    logits, settings, noise = random_inputs()
    with pytest.raises(AssertionError):
        assert_agrees(mix(logits, *MUTATIONS[name](*settings), noise, 10), logits, settings, noise)
