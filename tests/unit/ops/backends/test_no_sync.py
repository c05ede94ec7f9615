"""The code path of a GPU: no value is read on the host, no shape depends on data, nothing is as wide as the vocabulary.

Fake tensors on "cuda" take the very branches a GPU would, at the real size, without one; torch refuses to read values
of theirs or to make shapes of them. What only a real GPU can show is marked `gpu`.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from led_sglang.ops import (
    Backend,
    Head,
    LedRows,
    LedStep,
    LogitEdits,
    RowMeta,
    ThinkingAutomaton,
    ThinkingTables,
    backend_for,
    led_step,
    uniforms,
)
from led_sglang.ops.backends import one_pass, torch_step
from led_sglang.ops.backends.torch import TorchBackend
from led_sglang.ops.types import Counters
from tests.unit.ops.cases.op_cases import EVERY_SWITCH, FIXED_SHAPES, make_inputs, make_rows, on_gpu
from tests.unit.ops.cases.watch import MIB, V, Watch

H, DEPTH, TOP_K = 2560, 8, 8
CASES: dict[str, tuple[int, dict[str, Any]]] = {"paper": (8, {}), "every switch": (8, EVERY_SWITCH), "no row": (0, {})}
FORMS = ["coin_first", "one_pass"]


def step_of(form: str, rows: LedRows, num_edited: int = 0, backend: Backend = FIXED_SHAPES) -> tuple[LedStep, Watch]:
    """What the server runs for one step after the model's last layer; some rows have penalties and bias."""
    with FakeTensorMode():
        num_rows, rows = len(rows.depth), on_gpu(rows)
        final_logits = torch.empty(num_rows, V, device="cuda")
        latents = torch.empty(DEPTH, num_rows, H, device="cuda", dtype=torch.bfloat16)
        weight = torch.empty(V, H, device="cuda", dtype=torch.bfloat16)
        head = Head(weight, V, final_norm=lambda hidden: hidden * 2)
        hidden, lse = torch.empty_like(latents[0]), torch.empty(DEPTH - 1, num_rows, device="cuda")
        column = torch.empty(num_rows, dtype=torch.int64, device="cuda")
        edits = None
        if num_edited:
            penalties, scaling, bias = (torch.empty(2 * num_rows, V, device="cuda") for _ in range(3))
            edits = LogitEdits(penalties, scaling, bias, column, column[:num_edited])
        with Watch() as watch:
            inputs = make_inputs(*uniforms(column, column, column))
            known_lse = None
            if form == "one_pass":
                mask, tau = torch.empty_like(column, dtype=torch.bool), torch.empty(num_rows, device="cuda")
                backend.one_pass_mask(rows, inputs, None, mask, tau)
                backend.head_pass(hidden, latents[: DEPTH - 1], head, tau, mask, lse)
                known_lse = one_pass.known_lse_of(rows, lse, mask, backend.coin_threshold)
            step = led_step(
                final_logits, latents, head, rows, inputs, backend=backend, known_lse=known_lse, edits=edits
            )
        assert step.token_ids.device.type == "cuda"
        return step, watch


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_no_host_sync(form, name):
    num_rows, changes = CASES[name]
    step, watch = step_of(form, make_rows(num_rows, **{"depth": DEPTH, "top_k": TOP_K} | changes))
    assert step.token_ids.shape == (num_rows,) and step.candidate_ids.shape == (num_rows, TOP_K)
    assert not watch.copies


@pytest.mark.parametrize("form", FORMS)
def test_no_host_sync_with_penalties_and_bias(form):
    """The tables are read where they lie: what is alive does not grow with rows times vocabulary."""
    step, watch = step_of(form, make_rows(8, **{"depth": DEPTH, "top_k": TOP_K} | EVERY_SWITCH), num_edited=3)
    assert step.token_ids.shape == (8,) and not watch.copies
    num_rows = 256 if form == "coin_first" else one_pass.MAX_ROWS
    _, watch = step_of(form, make_rows(num_rows, DEPTH, TOP_K), num_edited=num_rows)
    logits_bytes = num_rows * V * 2 if form == "one_pass" else 0
    assert watch.peak_bytes - logits_bytes <= 128 * MIB, watch.peak_bytes / MIB


@pytest.mark.parametrize("is_part", [False, True])
def test_no_host_sync_around_a_step(is_part):
    """Inputs before the token, the token, the states and the counts after it."""
    tables = ThinkingAutomaton([1], [2], V).tables("cpu")
    with FakeTensorMode(allow_non_fake_inputs=True):

        def column(count: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.empty(count, dtype=dtype, device="cuda")

        flag, number = column(8, torch.bool), column(8)
        meta = RowMeta(number if is_part else None, number, number, number, number, flag, flag, True)
        moved = ThinkingTables(tables.symbol_of.cuda(), tables.next_state.cuda(), tables.num_symbols)
        counters = Counters(column(64), 40, column(13, torch.float64))
        confidence, probs = column(8, torch.float32), column(8, torch.float32)[:, None]
        step = LedStep(number, flag, flag, number, confidence, None, number[:, None], probs, probs, None)
        with Watch() as watch:
            inputs = FIXED_SHAPES.row_inputs(meta, column(12), column(12), column(12), column(40))
            FIXED_SHAPES.write_tokens(meta, column(12, torch.int32), inputs, step)
            FIXED_SHAPES.advance(meta, moved, column(40), inputs, column(12, torch.int32))
            for decided in (step, None):
                assert FIXED_SHAPES.count(inputs, decided, False, number, counters).device.type == "cuda"
    assert not watch.copies


def test_a_sync_would_be_seen():
    """The CPU's path on a fake GPU reads values and makes shapes from them."""
    dynamic = TorchBackend(allows_dynamic_shapes=True)
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        step_of("coin_first", make_rows(8, DEPTH, TOP_K), backend=dynamic)
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        step_of("one_pass", make_rows(8, DEPTH, TOP_K), backend=dynamic)


def test_a_server_on_a_gpu_takes_that_path():
    backend = backend_for("torch", torch.device("cuda"))
    assert not backend.allows_dynamic_shapes and backend.coin_threshold == FIXED_SHAPES.coin_threshold


def test_a_copy_to_the_host_would_be_seen(monkeypatch):
    plain = torch_step.inverse_cdf
    monkeypatch.setattr(torch_step, "inverse_cdf", lambda probs, u: plain(probs.cpu().cuda(), u))
    assert step_of("coin_first", make_rows(8, DEPTH, TOP_K))[1].copies


@pytest.mark.parametrize(("form", "num_rows"), [("coin_first", 256), ("one_pass", one_pass.MAX_ROWS)])
def test_extra_memory_does_not_grow_with_the_vocabulary(form, num_rows):
    """Issue 3: at most 64 MiB beside the capture buffer. The one-pass form's final logits are the engine's own need."""
    _, watch = step_of(form, make_rows(num_rows, DEPTH, TOP_K))
    logits_bytes = num_rows * V * 2 if form == "one_pass" else 0
    assert 8 * MIB < watch.peak_bytes - logits_bytes <= 64 * MIB, watch.peak_bytes / MIB


def test_a_copy_of_the_logits_would_be_seen(monkeypatch):
    monkeypatch.setattr(torch_step, "FIXED_CHUNK_ELEMENTS", 1 << 30)
    assert step_of("coin_first", make_rows(256, DEPTH, TOP_K))[1].peak_bytes > 140 * MIB


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", CASES)
def test_no_host_sync_on_a_gpu(backend, name):
    num_rows, changes = CASES[name]
    rows = make_rows(num_rows, **{"depth": DEPTH, "top_k": TOP_K} | changes, device="cuda")
    weight = torch.randn(32001, 512, device="cuda", dtype=torch.bfloat16)
    latents = torch.randn(DEPTH, num_rows, 512, device="cuda", dtype=torch.bfloat16)
    logits = torch.randn(num_rows, 32001, device="cuda")
    column = torch.arange(num_rows, device="cuda")
    arguments = (
        logits,
        latents,
        Head(weight, 32001),
        rows,
        make_inputs(*uniforms(column, column, column)),
    )
    led_step(*arguments, backend=backend)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        led_step(*arguments, backend=backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")
