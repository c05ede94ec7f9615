"""Penalties and bias in the other methods: against their references, what a ban is, and that layers are still chosen
as without them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from led_sglang.ops import LogitEdits
from led_sglang.ops.methods.confident import confident_logits
from led_sglang.ops.methods.dola import dola_logits
from led_sglang.ops.methods.reference import confident_row, dola_row, sled_row
from led_sglang.ops.methods.sled import sled_logits
from led_sglang.ops.reference import edited
from tests.unit.ops.cases.edit_cases import KINDS, by_hand, tables
from tests.unit.ops.cases.method_cases import (
    MAX_SCALE,
    Confident,
    Dola,
    Sled,
    assert_agree,
    mix,
    random_confident,
    random_dola,
    random_sled,
)  # fmt: skip
from tests.unit.ops.cases.ranks import Ranks, shards

METHODS = {"dola": random_dola, "confident": random_confident, "sled": random_sled}
Case = Dola | Confident | Sled


def edits_for(kind: str, case: Case) -> LogitEdits:
    num_rows, vocab = case.final_logits.shape
    return LogitEdits(**tables(kind, 2 * num_rows, vocab), rows=2 * torch.arange(num_rows).flip(0) + 1)


def run(case: Case, edits: LogitEdits | None, forbidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The case's final logits are those before the edits; a grammar's mask comes with the edits."""
    plain = case.final_logits
    final = plain if edits is None else by_hand(plain, edits)
    final = final if forbidden is None else final.masked_fill(forbidden, -torch.inf)
    more: Any = (None, None) if edits is None else (plain, edits)
    if isinstance(case, Dola):
        return dola_logits(final, case.early, case.candidates, case.relative_top, case.head, *more)
    if isinstance(case, Sled):
        return sled_logits(final, case.early, case.rate, case.scale, case.head, MAX_SCALE, *more)
    return confident_logits(final, case.latents, case.num_layers, case.head, *more)


def edited_row(edits: LogitEdits, r: int, logits: list[float]) -> list[float]:
    return list(edited(torch.tensor(logits, dtype=torch.float64), edits, r).tolist())


def reference(case: Case, edits: LogitEdits, forbidden: Tensor | None) -> tuple[Tensor, Tensor]:
    final = by_hand(case.final_logits, edits)
    final = final if forbidden is None else final.masked_fill(forbidden, -torch.inf)
    rows = []
    for r in range(len(final)):
        more = case.final_logits[r].tolist(), partial(edited_row, edits, r)
        if isinstance(case, Dola):
            requested = case.candidates[r].tolist(), case.relative_top[r].item(), case.head
            rows.append(dola_row(final[r].tolist(), list(case.early[:, r]), *requested, *more))
        elif isinstance(case, Sled):
            settings = case.rate[r].item(), int(case.scale[r]), case.head
            rows.append(sled_row(final[r].tolist(), list(case.early[:, r]), *settings, *more))
        else:
            window = int(case.num_layers[r]), case.head
            rows.append(confident_row(final[r].tolist(), list(case.latents[:, r]), *window, *more))
    return torch.tensor([logits for logits, _ in rows]), torch.tensor([chosen for _, chosen in rows])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_agrees_with_the_reference(method, kind):
    case = METHODS[method](num_rows=12)
    edits = edits_for(kind, case)
    grammar = torch.rand(case.final_logits.shape, generator=torch.Generator().manual_seed(5)) < 0.4
    for forbidden in (None, grammar):
        found = run(case, edits, forbidden)
        assert_agree(found, reference(case, edits, forbidden), atol=5e-5)
        if forbidden is not None:
            assert (found[0][forbidden] == -torch.inf).all()


@pytest.mark.parametrize("method", METHODS)
def test_no_bias_decides_which_layer_is_chosen(method):
    case = METHODS[method](num_rows=40)
    plain = run(case, None)[1]
    for kind in ("bias up", "ban", "all"):
        assert torch.equal(run(case, edits_for(kind, case))[1], plain)


def banned(case: Case) -> tuple[LogitEdits, Tensor]:
    """The likeliest token that the method would draw, of each row."""
    tokens = run(case, None)[0].argmax(-1, keepdim=True)
    return LogitEdits(None, None, torch.zeros_like(case.final_logits).scatter(1, tokens, -100.0)), tokens


@pytest.mark.parametrize("method", METHODS)
def test_a_banned_token_has_no_probability(method):
    """DoLa's limit of plausibility would otherwise leave nothing but the banned token."""
    case = METHODS[method](num_rows=40)
    if isinstance(case, Dola):
        case = replace(case, relative_top=torch.tensor([0.1, 0.5, 1.0, 0.01]).repeat(10))
    edits, tokens = banned(case)
    logits, chosen = run(case, edits)
    assert (logits.softmax(-1).gather(1, tokens) < 1e-30).all()
    if isinstance(case, Confident):
        assert (chosen > 0).any() and (chosen == 0).any()


@pytest.mark.parametrize("method", METHODS)
def test_lower_is_less_likely(method):
    case = METHODS[method](num_rows=40)
    _, tokens = banned(case)
    before = torch.zeros(40)
    for bias in (-100.0, -20.0, -3.0, -0.5, 0.0, 0.5, 3.0):
        table = torch.zeros_like(case.final_logits).scatter(1, tokens, bias)
        probs = run(case, LogitEdits(None, None, table))[0].softmax(-1).gather(1, tokens)[:, 0]
        assert (probs >= before - 1e-6).all()
        before = probs
    assert (before > 0.3).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_final_layer_of_its_own_choice_keeps_its_bits(method):
    """Rows that decode the engine's logits decode them as they are."""
    case = METHODS[method](num_rows=12)
    edits = edits_for("all", case)
    if isinstance(case, Dola):
        case = replace(case, candidates=torch.zeros_like(case.candidates))
    if isinstance(case, Sled):
        case = replace(case, early=case.early.index_fill(1, torch.tensor([3, 7]), torch.nan))
    logits, chosen = run(case, edits)
    kept = chosen == (-1 if isinstance(case, Dola) else 0)
    assert kept.any()
    assert torch.equal(logits[kept], by_hand(case.final_logits, edits)[kept])


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_equal_the_whole_head(method):
    case = METHODS[method](num_rows=7)
    edits, ranks = edits_for("all", case), Ranks(2)
    parts = [replace(case, head=head) for head in shards(case.head, [0, 50, 97], 60, ranks)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda part: run(part, edits), parts))
    for one in found:
        assert_agree(one, run(case, edits), atol=5e-5)


@pytest.mark.parametrize("gumbel", [0.0, 0.5])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_a_banned_token_has_no_weight_in_a_mixture(temperature, gumbel):
    """Soft methods mix what the engine's edited logits say."""
    logits = torch.randn(64, 9, generator=torch.Generator().manual_seed(1)) * 4
    top = logits.argmax(-1, keepdim=True)
    noise = torch.rand(64, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64) if gumbel else None
    step = mix(logits.scatter_add(1, top, torch.full((64, 1), -100.0)), temperature, False, 9, gumbel, noise, 9)
    weight = step.weights.masked_fill(step.ids != top, 0.0).sum(-1)
    assert step.ok.all() and (weight < 1e-30).all() and (step.ids[:, :1] != top).all()
