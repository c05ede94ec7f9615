"""The code path of a GPU: no value is read on the host, no shape depends on data, nothing is as wide as the vocabulary.

Fake tensors on "cuda" take the very branches a GPU would, at the real size, without one; torch refuses to read values
of theirs or to make shapes of them. What only a real GPU can show is marked `gpu`.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from led_sglang.ops import Backend, Head, LedRows, LedStep, LogitEdits, backend_for, led_step, uniforms
from led_sglang.ops.backends import one_pass, torch_step
from led_sglang.ops.backends.torch import TorchBackend
from tests.unit.ops.cases.op_cases import FIXED_SHAPES, make_inputs, make_rows
from tests.unit.ops.cases.watch import MIB, V, Watch

H, DEPTH, TOP_K = 2560, 8, 8
EVERY_SWITCH = {
    "greedy": torch.tensor([True, False] * 4),
    "exploit": torch.tensor([False, True] * 4),
    "latent_norm": torch.tensor([True, False] * 4),
    "latent_offset": torch.tensor([0, 1] * 4),
    "normalize_layers": torch.tensor([True, False] * 4),
    "min_p": torch.tensor([0.1, 0.0] * 4),
    "trace": torch.tensor([True, False] * 4),
    "depth": torch.tensor([8, 3] * 4),
    "top_k": torch.tensor([8, 2] * 4),
}
CASES: dict[str, tuple[int, dict[str, Any]]] = {"paper": (8, {}), "every switch": (8, EVERY_SWITCH), "no row": (0, {})}
FORMS = ["coin_first", "one_pass"]


def on_gpu(rows: LedRows) -> LedRows:
    """The same promises, fake columns."""
    columns = {name: value for name, value in vars(rows).items() if isinstance(value, Tensor)}
    return replace(
        rows, **{name: torch.empty(value.shape, dtype=value.dtype, device="cuda") for name, value in columns.items()}
    )


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
