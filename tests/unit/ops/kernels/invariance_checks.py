"""Run by test_invariance.py, under Triton's interpreter and without: a row's bits alone and in a crowd."""

from dataclasses import replace

import pytest
import torch

from led_sglang.cpu_platform import deterministic
from led_sglang.ops import led_step
from led_sglang.ops.backends import lm_head as torch_head
from led_sglang.ops.fp8.rows import Fp8Rows
from led_sglang.ops.kernels import final_layer, lm_head
from led_sglang.ops.kernels.common import WIDTHS, is_interpreted, width_of
from led_sglang.ops.kernels.lm_head import latent_lse
from tests.unit.ops.cases.op_cases import Case, make_case, make_inputs, make_rows

CROWDS = (1, 9, 10, 64)
BACKENDS = ["triton"] if is_interpreted() else ["torch", "numba"]
NUM_LAYERS = 3


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a server: products that do not know their neighbours. The sizes of a real vocabulary, scaled down."""
    if is_interpreted():
        monkeypatch.setattr(final_layer, "PART", 64)
        monkeypatch.setattr(final_layer, "STRIP", 8)
        monkeypatch.setattr(lm_head, "SMALL_TILE", lm_head.SMALL_TILE._replace(rows=8, vocab=32))
        monkeypatch.setattr(lm_head, "LARGE_TILE", lm_head.LARGE_TILE._replace(rows=16, vocab=64))
    else:
        monkeypatch.setattr(torch_head, "TILE_ELEMENTS", 1 << 13)
        monkeypatch.setattr(torch_head, "INVARIANT_WIDTH", 512)
        deterministic.enable_batch_invariant_mode()


def crowd(num_rows: int, is_mixed: bool, interpreted_vocab: int = 70) -> Case:
    """Row 0 asks for the same and has the same numbers in every crowd."""
    vocab, hidden = (interpreted_vocab, 24) if is_interpreted() else (1300, 40)
    whole = make_case(max(CROWDS), vocab, hidden=hidden, depth=NUM_LAYERS + 1, dtype=torch.bfloat16, explore=True)
    row = torch.arange(num_rows)
    depth = torch.where(row == 0, 3, NUM_LAYERS + 1) if is_mixed else 3
    top_k = torch.where(row == 0, 5, 20) if is_mixed else 5
    return Case(
        whole.final_logits[:num_rows],
        whole.latents[:, :num_rows],
        replace(whole.head, is_batch_invariant=True),
        make_rows(num_rows, depth=depth, top_k=top_k, trace=True),  # type: ignore[arg-type]
        make_inputs(whole.inputs.coin_uniform[:num_rows], whole.inputs.token_uniform[:num_rows]),
    )


def bits_of_row_0(case: Case, backend: str) -> list[torch.Tensor]:
    step = led_step(case.final_logits, case.latents, case.head, case.rows, case.inputs, backend=backend)
    assert step.logprob is not None and step.depth_entropy is not None
    found = [step.token_ids, step.depth, step.confidence, step.explored, step.logprob]
    probs = step.exploit_probs[:, :5], step.explore_probs[:, :5], step.candidate_ids[:, :5], step.depth_entropy[:, :3]
    return [value[0] for value in (*found, *probs)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_mixed", [False, True], ids=["alike", "deeper and wider"])
def check_a_step(backend: str, is_mixed: bool) -> None:
    alone = bits_of_row_0(crowd(1, False), backend)
    for num_rows in CROWDS[1:3] if is_interpreted() else CROWDS[1:]:  # the interpreter takes its time
        together = bits_of_row_0(crowd(num_rows, is_mixed), backend)
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one, other), (num_rows, one, other)


def check_normalizers() -> None:
    """Of every layer: of the first row, as on a GPU, where rows that need nothing lie between.

    Of many tiles: a sum of three may come out alike in either width.
    """
    found = []
    for num_rows in CROWDS:
        case = crowd(num_rows, False, 1300)
        tau = torch.full((num_rows, 1), 0.7)
        explore_mask = torch.arange(num_rows) % 3 != 1
        if is_interpreted():
            found.append(latent_lse(case.latents, case.head, tau, explore_mask, None)[:, 0])
        else:
            found.append(torch_head.complete_lse(case.latents, case.head, tau, None)[:, 0])
    assert all(torch.equal(found[0], other) for other in found[1:]), found


def check_normalizers_of_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 8 bits, which is read for any number of rows."""
    monkeypatch.setattr(lm_head, "COPY_ROWS", 8)
    monkeypatch.setattr(torch_head, "CHUNK", 128)
    found = []
    for num_rows in CROWDS[:3]:
        case = crowd(num_rows, False, 300)
        head, tau = replace(case.head, lse_copy=Fp8Rows.of(case.head.weight)), torch.full((num_rows, 1), 0.7)
        if is_interpreted():
            found.append(latent_lse(case.latents, head, tau, torch.ones(num_rows, dtype=torch.bool), None)[:, 0])
        else:
            found.append(torch_head.complete_lse(case.latents, head, tau, None)[:, 0])
    assert all(torch.equal(found[0], other) for other in found[1:]), found


def check_widths() -> None:
    """One for every number of candidates: in the interpreter, columns of zeros do not change a sum's bits."""
    widths = {width_of(count, is_fixed=True) for count in range(1, WIDTHS[-1] + 1)}
    assert widths == {WIDTHS[-1]} and len({width_of(count) for count in range(1, WIDTHS[-1] + 1)}) > 1
