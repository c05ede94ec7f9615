"""Run under TRITON_INTERPRET=1 by test_triton.py: what a product of the engine's gives, against plain torch."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from led_sglang.ops.backends.lm_head import local_sums
from led_sglang.ops.kernels import candidates
from tests.unit.ops.cases.op_cases import Case, make_case
from tests.unit.ops.cases.projected_cases import projected, with_explorers


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "BLOCK_VOCAB", 64)
    monkeypatch.setattr(candidates, "PROJECT_ROWS", 16)


def compare(case: Case, dtype: torch.dtype = torch.float32, **changes: object) -> None:
    """Rows that are not needed are read no further than the product; they hold 0."""
    case = case.with_head(**changes)
    num_rows, weight = len(case.final_logits), case.head.weight
    vocab = case.head.num_rows if case.head.all_gather is None else len(weight)  # a shard has another's candidates
    ids = torch.randint(vocab, (num_rows, 19), generator=torch.Generator().manual_seed(1))
    tau, explore_mask = torch.linspace(0.3, 2, num_rows)[:, None], torch.arange(num_rows) % 3 != 1
    head = replace(case.head, project=lambda hidden: (hidden @ weight.T).to(dtype))
    truth = local_sums(case.latents, ids, head, tau, None, None)
    poisoned = case.latents.masked_fill(~explore_mask[:, None], torch.nan)
    found = candidates.projected_sums(poisoned, ids, head, tau, explore_mask)
    for ours, theirs in zip(found, truth, strict=True):
        mask = explore_mask.view(-1, *[1] * (theirs.dim() - 2))
        torch.testing.assert_close(ours, theirs.where(mask, 0.0), rtol=1e-5, atol=1e-5)


def check_step(small_blocks: None) -> None:
    """The step itself on the path of a GPU: all rows, in few products."""
    plain = with_explorers(19, 6, trace=False)
    case, product = projected(plain)
    step = case.run("triton")
    truth = plain.run("torch")
    assert product.num_rows == [16, 16, 16, 9] and truth.explored.sum() == 6
    assert torch.equal(step.token_ids, truth.token_ids) and torch.equal(step.depth, truth.depth)
    torch.testing.assert_close(step.explore_probs, truth.explore_probs, rtol=1e-4, atol=1e-5)


CASE = make_case(7, 211, hidden=40, depth=4)
HEADS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "capped": {"dtype": torch.float16, "softcap": 6.0, "scale": 1.5, "num_rows": 200},
    "shard": {"first_id": 100, "num_rows": 90, "all_gather": torch.clone},
}


@pytest.mark.parametrize("changes", HEADS.values(), ids=list(HEADS))
def check_sums(small_blocks: None, changes: dict[str, Any]) -> None:
    compare(CASE, **changes)


def check_broken_latents(small_blocks: None) -> None:
    case, weight = make_case(7, 211, hidden=40, depth=4), CASE.head.weight
    broken = case.with_rows(exploit=torch.zeros(7, dtype=torch.bool)).with_head(
        project=lambda hidden: hidden @ weight.T
    )
    broken.latents[0, 1], broken.latents[1, 3] = torch.inf, torch.nan
    assert broken.run("triton").ok.tolist() == broken.run("torch").ok.tolist() == [i not in (1, 3) for i in range(7)]
