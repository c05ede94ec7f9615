"""What the final layer gives of each row: its log-sum-exp and candidates from one read of the logits, then the coin."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from led_sglang.ops.kernels.common import aligned, width_of
from led_sglang.ops.types import ALIGNMENT, LedRows, StepInputs

BLOCK = 2048
MAX_PICKED = 16  # candidates that the scan finds itself; torch.topk beyond
LOW_BITS = tl.constexpr(0x7FFFFFFF)


@triton.jit
def pack(values, ids):  # type: ignore[no-untyped-def]
    """float32 and its place, as an int64 of the same order: larger values first, then smaller ids."""
    bits = values.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & LOW_BITS)
    return (ordered.to(tl.int64) << 32) | (ids ^ LOW_BITS).to(tl.int64)


@triton.jit
def unpack(packed):  # type: ignore[no-untyped-def]
    ordered = (packed >> 32).to(tl.int32)
    values = (ordered ^ ((ordered >> 31) & LOW_BITS)).to(tl.float32, bitcast=True)
    return values, (packed & LOW_BITS) ^ LOW_BITS


@triton.jit(do_not_specialize=["num_parts", "stride_row"])  # type: ignore[untyped-decorator]
def scan_kernel(  # type: ignore[no-untyped-def]
    logits,  # (R, V)
    tau,  # (R,)
    peaks,  # (R, num_parts) float32, written: the part's largest logit
    masses,  # (R, num_parts) float32, written: sum_v exp((logit_v - peak) / tau)
    picked,  # (R, num_parts, PICKED) int64, written where PICKED: its largest logits, packed
    num_vocab,
    num_parts,
    stride_row,
    stride_column,
    IS_ALIGNED: tl.constexpr,  # every row begins at a multiple of ALIGNMENT elements
    PICKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of one part of the vocabulary: its largest logit, sum_v exp((z_v - peak) / tau), and its PICKED largest logits.

    A program: BLOCK logits of one row, read once and held in registers.
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin = row * stride_row
    if IS_ALIGNED:  # the compiler sees that wide loads may begin there
        begin = row * (stride_row // 16) * 16
    ids = part * BLOCK + tl.arange(0, BLOCK)
    is_token = ids < num_vocab
    values = tl.load(logits + begin + ids * stride_column, mask=is_token, other=float("-inf")).to(tl.float32)
    peak = tl.max(values, 0)
    shift = tl.where(peak == float("-inf"), 0.0, peak)
    offset = row * num_parts + part
    tl.store(peaks + offset, peak)
    tl.store(masses + offset, tl.sum(tl.where(is_token, tl.exp((values - shift) / tl.load(tau + row)), 0.0), 0))
    if PICKED:
        packed = tl.where(is_token, pack(values, ids), -0x8000000000000000)
        tl.store(picked + offset * PICKED + tl.arange(0, PICKED), tl.topk(packed, PICKED))


@triton.jit(do_not_specialize=["num_columns", "num_candidates", "num_parts"])  # type: ignore[untyped-decorator]
def coin_kernel(  # type: ignore[no-untyped-def]
    peaks,  # (R, num_parts) float32
    masses,  # (R, num_parts) float32
    picked,  # (R, num_parts, PICKED) int64, where PICKED
    top,  # (R, C): the largest logits, unless PICKED
    tau,  # (R,)
    top_k,  # (R,) int64
    min_p,  # (R,) float32
    active,  # (R,) bool
    exploits,  # (R,) bool
    trace,  # (R,) bool
    coin_uniform,  # (R,) float64
    ids,  # (R, K) int64, written where PICKED
    logprobs,  # (R, K) float32, written
    explored,  # (R,) uint8, written
    explore_mask,  # (R,) uint8, written
    num_columns,  # C
    num_candidates,  # K >= C
    num_parts,
    PICKED: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """log p^L at the candidates (Eq. 1), and the coin: explored = active and (u + max p^L < 1 or not exploit) (Eq. 3).

    A program: one row. It merges the results of `scan_kernel` of PARTS parts, PARTS * PICKED packed logits among them.
    """
    row = tl.program_id(0).to(tl.int64)
    parts, columns = tl.arange(0, PARTS), tl.arange(0, BLOCK)
    row_tau = tl.load(tau + row)
    part_peaks = tl.load(peaks + row * num_parts + parts, mask=parts < num_parts, other=float("-inf"))
    part_masses = tl.load(masses + row * num_parts + parts, mask=parts < num_parts, other=0.0)
    peak = tl.max(part_peaks, 0)
    # A row of nothing but -inf is broken: exp(-inf - -inf) is NaN here.
    log_mass = tl.log(tl.sum(part_masses * tl.exp((part_peaks - peak) / row_tau), 0))
    is_column = columns < num_columns
    if PICKED:
        slots = tl.arange(0, PARTS * PICKED)
        packed = tl.load(
            picked + row * num_parts * PICKED + slots, mask=slots < num_parts * PICKED, other=-0x8000000000000000
        )
        values, found = unpack(tl.topk(packed, BLOCK))
        tl.store(ids + row * num_candidates + columns, tl.where(is_column, found, 0), mask=columns < num_candidates)
    else:
        values = tl.load(top + row * num_columns + columns, mask=is_column, other=float("-inf")).to(tl.float32)
    logs = (values - peak) / row_tau - log_mass  # Eq. 1: log p^L
    largest = (peak - peak) / row_tau - log_mass  # NaN where the row is broken
    is_dropped = (columns >= num_columns) | (columns >= tl.load(top_k + row))
    is_dropped = is_dropped | (logs < largest + tl.log(tl.load(min_p + row)))
    tl.store(
        logprobs + row * num_candidates + columns,
        tl.where(is_dropped, float("-inf"), logs),
        mask=columns < num_candidates,
    )
    is_active = tl.load(active + row) != 0
    # Eq. 3
    is_tails = tl.load(coin_uniform + row) + tl.exp(largest).to(tl.float64) < 1.0
    is_explored = is_active & (is_tails | (tl.load(exploits + row) == 0))
    tl.store(explored + row, is_explored.to(tl.uint8))
    tl.store(explore_mask + row, (is_explored | (is_active & (tl.load(trace + row) != 0))).to(tl.uint8))


@dataclass(frozen=True)
class FinalRows:
    """What the final layer gives, and what its coin says."""

    candidate_ids: Tensor  # (R, K) int64, most probable first, of equals the smaller id
    logprobs: Tensor  # (R, K) float32, -inf where the row may not use it; all NaN in a broken row
    explored: Tensor  # (R,) bool
    explore_mask: Tensor  # (R,) bool: explored, or in its phase and `trace`


def final_rows(final_logits: Tensor, tau: Tensor, rows: LedRows, inputs: StepInputs) -> FinalRows:
    """(R, V), (R,): Eq. 1 and 3 as in `torch_step.final_layer`."""
    (num_rows, num_vocab), num_candidates, device = final_logits.shape, rows.max_top_k, final_logits.device
    num_columns = min(num_candidates, num_vocab)
    width = width_of(num_candidates)
    block = min(BLOCK, max(width, triton.next_power_of_2(num_vocab)))
    num_parts = triton.cdiv(num_vocab, block)
    num_picked = width if width <= MAX_PICKED else 0
    peaks, masses = (torch.empty(num_rows, num_parts, device=device) for _ in range(2))
    logprobs = torch.empty(num_rows, num_candidates, device=device)
    explored, explore_mask = aligned(2, num_rows, torch.uint8, device)
    if num_picked:
        picked = torch.empty(num_rows, num_parts, num_picked, dtype=torch.int64, device=device)
        ids, top = torch.empty(num_rows, num_candidates, dtype=torch.int64, device=device), peaks
    else:
        top, ids = final_logits.topk(num_columns, dim=-1)
        ids = pad(ids, (0, num_candidates - num_columns)) if num_columns < num_candidates else ids
        picked = ids
    if num_rows:
        scan_kernel[(num_rows, num_parts)](
            final_logits, tau, peaks, masses, picked, num_vocab, num_parts, *final_logits.stride(),
            # Not by the row alone: where the vocabulary is no multiple, the engine's rows may be padded or not.
            IS_ALIGNED=num_vocab % ALIGNMENT == 0 and final_logits.stride(0) % ALIGNMENT == 0,
            PICKED=num_picked, BLOCK=block,
        )  # fmt: skip
        coin_kernel[(num_rows,)](
            peaks,
            masses,
            picked,
            top,
            tau,
            rows.top_k,
            rows.min_p,
            inputs.active.contiguous(),
            rows.exploit,
            rows.trace,
            inputs.coin_uniform.contiguous(),
            ids,
            logprobs,
            explored,
            explore_mask,
            num_columns,
            num_candidates,
            num_parts,
            PICKED=num_picked,
            PARTS=triton.next_power_of_2(num_parts),
            BLOCK=width,
        )
    return FinalRows(ids, logprobs, explored.view(torch.bool), explore_mask.view(torch.bool))
