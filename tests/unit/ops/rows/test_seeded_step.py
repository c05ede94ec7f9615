"""A step of seeded requests where the host cannot look: no sort of the vocabulary, no copy of it, no host sync."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from led_sglang.integration.scheduler.methods import masks
from led_sglang.integration.scheduler.step.decision import Decision, draw_seeded
from led_sglang.integration.scheduler.step.inputs import SamplerInputs
from led_sglang.ops import backend_for
from led_sglang.ops.rows import filtered_draw
from led_sglang.ops.types import RowInputs
from tests.unit.integration.fakes import batch_of, request_row, sampling_info
from tests.unit.ops.cases.watch import MIB, V, Watch

NUM_ROWS = 256
MAX_TOP_K = 4096  # of a request that returns sampling masks: SGLang's --sampling-mask-max-tokens
FILTERS = ("need_top_k_sampling", "need_top_p_sampling", "need_min_p_sampling")


class SeededWatch(Watch):
    """Refuses to order the vocabulary."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("sort", "argsort", "topk", "msort", "kthvalue"):
            num_columns = args[0].shape[-1]
            num_ordered = args[1] if name == "topk" else num_columns
            assert num_columns < V or num_ordered <= MAX_TOP_K, f"{name} of {num_ordered} of {num_columns}"
        return super().__torch_dispatch__(func, types, args, kwargs)


def step_of(needs: tuple[bool, ...], num_masks: int, others: int = 0, backend: str = "torch") -> SeededWatch:
    """What the step adds to the engine's sampler for so many rows, all seeded, of which some return masks."""
    meta = [request_row("led", i) for i in range(NUM_ROWS)] + [request_row(None)] * others
    for i in range(num_masks):
        meta[i].__dict__["returns_mask"] = True
    with FakeTensorMode(allow_non_fake_inputs=True):
        led, total = batch_of(*meta), len(meta)
        info = sampling_info(led)

        def column(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device="cuda")

        vars(info).update(
            temperatures=column(total, 1),
            top_ks=column(total, dtype=torch.int32),
            top_ps=column(total),
            min_ps=column(total),
            sampling_mask_batch_indices=column(num_masks, dtype=torch.int64) if num_masks else None,
            sampling_mask_top_ks=[MAX_TOP_K] * num_masks + [1] * (total - num_masks),
            sampling_support_logprobs_capture_indices=column(num_masks, dtype=torch.int64) if num_masks else None,
            **dict(zip(FILTERS, needs, strict=True)),
        )
        positions = torch.arange(NUM_ROWS, device="cuda")
        rows = SimpleNamespace(
            seeded=positions,
            seeded_masked=positions[:num_masks] if num_masks else None,
            index=positions if others else None,
            num_rows=NUM_ROWS,
        )
        noise, flag = column(NUM_ROWS, dtype=torch.float64), column(NUM_ROWS, dtype=torch.bool)
        probs, token_ids = column(total, V), column(total, dtype=torch.int32)
        now = RowInputs(flag, noise, noise, positions, positions, flag, positions)
        runtime: Any = SimpleNamespace(backend=backend_for(backend, probs.device), allows_dynamic_shapes=False)
        inputs = SamplerInputs(runtime, rows, info, now)  # type: ignore[arg-type]
        reported = SimpleNamespace(
            token_ids=column(num_masks, MAX_TOP_K, dtype=torch.int32),
            lengths=column(num_masks, dtype=torch.int32),
            selected_logprobs=column(num_masks),
            statuses=column(num_masks, dtype=torch.int32),
            support_logprobs=column(num_masks, MAX_TOP_K),
        )
        with SeededWatch() as watch:
            decision = Decision(inputs, seeded=draw_seeded(inputs, probs))
            decision.write(token_ids)
            if num_masks:
                masks.write(reported, decision.draws(), token_ids, info)
    return watch


@pytest.fixture(autouse=True)
def _halvings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each does and allocates what the first does."""
    monkeypatch.setattr(filtered_draw, "NUM_HALVINGS", 2)


@pytest.mark.parametrize("num_masks", [0, 16, NUM_ROWS])
@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)), ids=str)
def test_whatever_requests_ask_for(needs, num_masks):
    watch = step_of(needs, num_masks)
    assert not watch.copies
    assert 8 * MIB < watch.peak_bytes <= 64 * MIB, watch.peak_bytes / MIB


def test_rows_between_others():
    assert not step_of((True, True, True), 16, others=7).copies


def test_a_copy_of_the_probabilities_would_be_seen(monkeypatch):
    monkeypatch.setattr(filtered_draw, "CHUNK_ELEMENTS", 1 << 30)
    assert step_of((False, False, False), 0).peak_bytes > 140 * MIB


def test_a_sort_would_be_seen(monkeypatch):
    def sorting(clean: Tensor, *args: Any) -> Any:
        clean.sort(dim=-1)

    monkeypatch.setattr(filtered_draw, "_sample", sorting)
    with pytest.raises(AssertionError, match="sort of"):
        step_of((True, True, True), 0)
