"""Run by test_warm_up.py: which variants of the kernels requests reach, as Triton tells them apart for a Hopper GPU.

Nothing is compiled or run, so what the kernels would have written is arbitrary.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton

from benchmarks.gpu.build import Hopper, Launch, launches
from led_sglang.config.fields import LedParams
from led_sglang.config.methods import METHODS
from led_sglang.config.request import ResolvedRequest
from led_sglang.integration.scheduler.batch import LedBatch, RequestRow, _to_device
from led_sglang.integration.scheduler.latents.one_pass import OnePassState
from led_sglang.ops import Head, LogitEdits, ThinkingAutomaton, led_step
from led_sglang.ops.backends.triton import TritonBackend
from led_sglang.ops.fp8.rows import FORMAT, Fp8Rows
from led_sglang.ops.types import Counters, Filters

triton.runtime.driver.set_active(Hopper())
CPU, BACKEND = torch.device("cpu"), TritonBackend()
VOCAB, HIDDEN, MAX_ROWS, MAX_TOP_K = 151936, 64, 258, 256
DEPTHS, TOP_KS = range(1, 9), (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 33, 64)
BATCHES = (1, 2, 3, 9, 10, 16, 48, 51, 52, 64, 65, 250, 258)
NUM_LATENTS = max(DEPTHS)
MACHINE = ThinkingAutomaton([0], [1], VOCAB).tables("cpu")


def weight(num_rows: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(num_rows, HIDDEN, dtype=dtype)


def gather(packed: torch.Tensor) -> torch.Tensor:
    return torch.stack([packed, packed])


HEADS = {
    "whole": Head(weight(VOCAB), VOCAB),
    "first half": Head(weight(75968), 75968, all_gather=gather),
    "second half": Head(weight(75968), 75968, 75968, all_gather=gather),
    "odd shard": Head(weight(75968), 75955, 75981, all_gather=gather),
    "float32, capped, biased": Head(weight(VOCAB, torch.float32), VOCAB, bias=torch.empty(VOCAB), softcap=30),  # type: ignore[arg-type]
    "quantised": Head(weight(VOCAB), VOCAB, project=lambda rows: rows.new_empty(len(rows), VOCAB)),
    "deterministic": Head(weight(VOCAB), VOCAB, is_batch_invariant=True),
    "in 8 bits": Head(weight(VOCAB), VOCAB, lse_copy=Fp8Rows(weight(VOCAB, FORMAT), torch.empty(VOCAB))),
}


@dataclass(frozen=True)
class Batch:
    """A batch of one kind; the parameters of its rows, None for one that is not LED's."""

    rows: list[dict[str, Any] | None]
    is_greedy: bool = False
    is_extend: bool = False
    is_edited: bool = False


def request_row(row: dict[str, Any] | None) -> RequestRow:
    if row is None:
        return RequestRow(None)
    return RequestRow(ResolvedRequest(params=LedParams(**row), seed=1, sample=0, is_seeded=True), start_length=4)


def serve(batch: Batch, head: Head) -> None:
    """One step as `integration.step` and `integration.sampler` make it, of a fresh batch."""
    num_rows, one_pass_state = (
        len(batch.rows),
        OnePassState(
            "auto",
            BACKEND,
            NUM_LATENTS - 1,
            MAX_ROWS,
            CPU,
            head.is_batch_invariant,
            "full" if head.lse_copy is None else "fp8",
        ),
    )
    buffer = torch.empty(NUM_LATENTS, MAX_ROWS, HIDDEN, dtype=head.weight.dtype)
    info = SimpleNamespace(
        temperatures=torch.ones(num_rows, 1),
        top_ks=torch.full((num_rows,), 1 if batch.is_greedy else 1 << 30, dtype=torch.int32),
        is_any_greedy=batch.is_greedy,
    )
    led = LedBatch.of(tuple(request_row(row) for row in batch.rows))
    assert led is not None
    rows = _to_device(led, info)
    numbers, states = torch.zeros(num_rows, dtype=torch.int64), torch.zeros(MAX_ROWS + 1, dtype=torch.int64)
    inputs = BACKEND.row_inputs(rows, numbers, numbers, numbers + 4 if batch.is_extend else None, states)
    params = rows.params
    known_lse, one_pass_state.fault = None, None if head.project is None else "its product is the engine's own"
    if not batch.is_extend and one_pass_state.form(num_rows) == "one_pass":
        one_pass_state.fill_mask(rows, inputs, num_rows)
        hidden = torch.empty(num_rows, HIDDEN, dtype=buffer.dtype)
        logits = one_pass_state.through(lambda h: h.new_empty(len(h), len(head.weight)), hidden, head, buffer)
        assert one_pass_state.fault is None, one_pass_state.fault
        known_lse = one_pass_state.known_lse(rows, num_rows)
    logits = torch.empty(num_rows, VOCAB)
    edited = None
    if batch.is_edited:
        edited = LogitEdits(torch.zeros(num_rows, VOCAB), None, None, rows.index, torch.tensor([0]))
    latents = buffer[:, :num_rows] if rows.index is None else buffer.index_select(1, rows.index)
    step = led_step(
        rows.pick(logits), latents, head, params, inputs, backend=BACKEND, known_lse=known_lse, edits=edited
    )
    token_ids = torch.zeros(num_rows, dtype=torch.int64 if batch.is_greedy else torch.int32)
    BACKEND.write_tokens(rows, token_ids, inputs, step)
    BACKEND.advance(rows, MACHINE, states, inputs, token_ids)
    assert rows.seeded is not None
    batch_rows = rows.seeded if rows.index is None else rows.index[rows.seeded]
    filters = Filters(info.top_ks, torch.ones(num_rows), torch.zeros(num_rows))
    BACKEND.sample_filtered(logits, batch_rows, inputs.active[rows.seeded], inputs.token_uniform[rows.seeded], filters)
    BACKEND.count(inputs, step, False, rows.method, Counters.zeros(NUM_LATENTS, len(METHODS), CPU))


def batches() -> Iterator[Batch]:
    """What requests may ask for together, with sizes of batches that go around."""
    sizes = iter(BATCHES * 10_000)
    small = iter((1, 2, 3, 5, 9, 10) * 10_000)
    for depth, top_k, trace, is_mixed in product(DEPTHS, TOP_KS, (False, True), (False, True)):
        row = {"depth": depth, "top_k": top_k, "trace": trace}
        others = [{"depth": 3, "top_k": min(2, top_k)}, None] if is_mixed else [row]
        # torch sorts the whole logits of more than 16 candidates, which takes its time
        yield Batch([row, *others * (next(small if top_k > 16 else sizes) // len(others))][:MAX_ROWS])
    for size, is_greedy, is_extend in product(BATCHES, (False, True), (False, True)):
        yield Batch([{"depth": 8, "top_k": 8}] * size, is_greedy, is_extend)
    for change in (
        {"latent_norm": True},
        {"latent_offset": 1, "depth": 8},
        {"latent_offset": 1, "depth": 2},
        {"min_p": 0.1},
        {"normalize_layers": True},
        {"exploit": False},
        {"phase": "all"},
        {"method": "dola"},
        {"method": "soft_thinking"},
    ):
        for size, is_mixed in product((1, 3, 10, 64), (False, True)):
            yield Batch([change, *([None, {"depth": 4}] if is_mixed else [change]) * size][: size + 1])
    for size in (1, 2, 10):
        for is_extend in (False, True):
            # by torch's own ids: a kernel that is not run finds none, and edits are looked up by them
            yield Batch([{"depth": 8, "top_k": 17}] * size, is_extend=is_extend, is_edited=True)


def warm(head: Head) -> set[Launch]:
    latents = torch.empty(NUM_LATENTS, 1, HIDDEN, dtype=head.weight.dtype)
    with launches() as seen:
        BACKEND.warm_up(head, latents, VOCAB, MAX_ROWS, MAX_TOP_K, MACHINE)
    return set(seen)


@pytest.mark.parametrize("name", HEADS)
def check_what_is_served_was_run_at_start(name: str) -> None:
    """Whatever requests ask for, and in whatever company: no kernel is compiled or loaded for them."""
    head = replace(HEADS[name], final_norm=torch.clone)
    known = warm(head)
    with launches() as seen:
        for batch in islice(batches(), 0, None, 1 if name == "whole" else 5):
            before = len(seen)
            serve(batch, head)
            new = set(seen[before:]) - known
            assert not new, (batch, new)
    assert len(seen) > (5000 if name == "whole" else 1000)
    verifying = ("grow_kernel", "prune_kernel", "softmax_kernel")  # no batch here has drafts
    unused = {
        launch for launch in known - set(seen) if launch.kernel not in verifying
    }  # of the widest requests, which are not walked, and of the larger batches
    assert len(unused) <= 6, Counter(launch.kernel for launch in unused)


def check_how_many_there_are() -> None:
    """docs/ops.md says so."""
    counts = Counter(launch.kernel for launch in warm(HEADS["whole"]))
    assert counts == {
        "row_inputs_kernel": 1,
        "one_pass_mask_kernel": 1,
        "head_kernel": 2,  # tiles of few rows, and of many
        "merge_kernel": 1,
        "scan_kernel": 1,
        "coin_kernel": 4,  # up to 8 candidates, 16, 64, 256
        "candidates_kernel": 3,  # up to 8 candidates, 16, more
        "mix_and_sample_kernel": 4,
        "write_kernel": 2,  # tokens of 32 and 64 bits
        "advance_kernel": 2,
        "pack_flags_kernel": 1,
        "parts_kernel": 1,
        "draw_kernel": 1,
        "grow_kernel": 1,  # this and the next two: of verifications of drafts
        "prune_kernel": 4,
        "softmax_kernel": 1,
    }
    assert sum(counts.values()) == 30
    more = Counter(launch.kernel for launch in warm(HEADS["in 8 bits"]))
    assert more - counts == {"head_kernel": 1}  # of the copy; the weight is read in one pass, and by many rows


@pytest.mark.parametrize("max_top_k", [1, 8, 64, 65, 1024, 5000])
def check_every_width_is_run(max_top_k: int) -> None:
    from led_sglang.ops.kernels.common import WIDTHS, size_up, sizes_up_to

    assert sizes_up_to(max_top_k, WIDTHS) == sorted({size_up(n, WIDTHS) for n in range(1, max_top_k + 1)})
