"""What the final layer gives of each row: its log-sum-exp and candidates from one read of the logits, then the coin.

Candidates are selected by levels, exactly. A part of the vocabulary is PART ids, a strip STRIP of them. Of K parts with
the largest peaks, of equal peaks those of the smaller ids, each holds a logit that precedes (larger, then smaller id)
all logits of any other part: so the first K logits are in these parts. The same holds for the strips of these parts.
What is sorted is a few hundred values a row. Taking the first of them K times instead needs fewer instructions and
more time, for each waits for the one before.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from led_sglang.ops.kernels.common import aligned, width_of
from led_sglang.ops.types import ALIGNMENT, LedRows, StepInputs

PART = 2048
STRIP = 64
MAX_PICKED = 16  # candidates that the levels find; torch.topk beyond, which knows no order of equals
SIGN_FLIP = tl.constexpr(0x7FFFFFFF)
NOTHING = tl.constexpr(-0x8000000000000000)  # what is packed is never smaller
NOWHERE = tl.constexpr(0x7FFFFFFF)  # its id


@triton.jit
def pack(values, ids):  # type: ignore[no-untyped-def]
    """float32 and its id, as an int64 of the same order: larger values first, then smaller ids; -0.0 equals 0.0."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & SIGN_FLIP)
    return (ordered.to(tl.int64) << 32) | (ids ^ SIGN_FLIP).to(tl.int64)


@triton.jit
def unpack(packed):  # type: ignore[no-untyped-def]
    ordered = (packed >> 32).to(tl.int32)
    values = (ordered ^ ((ordered >> 31) & SIGN_FLIP)).to(tl.float32, bitcast=True)
    return values, (packed & SIGN_FLIP).to(tl.int32) ^ SIGN_FLIP


@triton.jit  # type: ignore[untyped-decorator]
def first_of(values, ids, is_real, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first COUNT of a matrix, or of a row, of values with different ids: larger values, then smaller ids.

    Values and ids, (COUNT,), in order; the id is NOWHERE where there are fewer.
    """
    packed = tl.where(is_real, pack(values, ids), NOTHING)
    return unpack(tl.topk(tl.reshape(packed, (packed.numel,)), COUNT))


@triton.jit(do_not_specialize=["num_parts", "stride_row"])  # type: ignore[untyped-decorator]
def scan_kernel(  # type: ignore[no-untyped-def]
    logits,  # (R, V)
    tau,  # (R,)
    peaks,  # (R, num_parts) float32, written: the part's largest logit
    masses,  # (R, num_parts) float32, written: sum_v exp((logit_v - peak) / tau)
    strips,  # (R, num_parts, PART / STRIP) float32, written: the largest logit of each strip
    num_vocab,
    num_parts,
    stride_row,
    stride_column,
    IS_ALIGNED: tl.constexpr,  # every row begins at a multiple of ALIGNMENT elements
    PART: tl.constexpr,
    STRIP: tl.constexpr,
):
    """Of one part of the vocabulary: its largest logit, sum_v exp((z_v - peak) / tau), the largest of each strip.

    A program: PART logits of one row, read once and held in registers.
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin = row * stride_row
    if IS_ALIGNED:  # the compiler sees that wide loads may begin there
        begin = row * (stride_row // 16) * 16
    ids = part * PART + tl.arange(0, PART)
    is_token = ids < num_vocab
    values = tl.load(logits + begin + ids * stride_column, mask=is_token, other=float("-inf")).to(tl.float32)
    highest = tl.max(tl.reshape(values, (PART // STRIP, STRIP)), 1)
    peak = tl.max(highest, 0)
    shift = tl.where(peak == float("-inf"), 0.0, peak)
    offset = row * num_parts + part
    tl.store(peaks + offset, peak)
    tl.store(strips + offset * (PART // STRIP) + tl.arange(0, PART // STRIP), highest)
    over = 1.0 / tl.load(tau + row)
    # exp of the -inf beyond the vocabulary is 0.
    tl.store(masses + offset, tl.sum(tl.exp((values - shift) * over), 0))


@triton.jit(do_not_specialize=["num_columns", "num_candidates", "num_parts", "stride_row"])  # type: ignore[untyped-decorator]
def coin_kernel(  # type: ignore[no-untyped-def]
    peaks,  # (R, num_parts) float32
    masses,  # (R, num_parts) float32
    strips,  # (R, num_parts, PART / STRIP) float32, where PICKED
    top,  # (R, V): all logits where PICKED, else (R, C): the largest
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
    num_vocab,
    stride_row,
    stride_column,
    PICKED: tl.constexpr,
    PART: tl.constexpr,
    STRIP: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """log p^L at the candidates (Eq. 1), and the coin: explored = active and (u + max p^L < 1 or not exploit) (Eq. 3).

    A program: one row. It merges the results of `scan_kernel` of PARTS parts. Where PICKED it selects as many parts of
    these, as many strips of the PICKED * PART / STRIP in them, and BLOCK logits of the PICKED * STRIP in those.
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
        _, best = first_of(part_peaks, parts, parts < num_parts, PICKED)
        strip_ids = best[:, None] * (PART // STRIP) + tl.arange(0, PART // STRIP)[None, :]
        is_strip = (best != NOWHERE)[:, None] & (strip_ids * STRIP < num_vocab)
        strip_at = strips + row * num_parts * (PART // STRIP) + strip_ids
        _, best = first_of(tl.load(strip_at, mask=is_strip, other=0.0), strip_ids, is_strip, PICKED)
        tokens = best[:, None] * STRIP + tl.arange(0, STRIP)[None, :]
        is_token = (best != NOWHERE)[:, None] & (tokens < num_vocab)
        raw = tl.load(top + row * stride_row + tokens * stride_column, mask=is_token, other=0.0)
        values, found = first_of(raw.to(tl.float32), tokens, is_token, BLOCK)
        found = tl.where(is_column & (found != NOWHERE), found, 0).to(tl.int64)
        tl.store(ids + row * num_candidates + columns, found, mask=columns < num_candidates)
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
    num_picked = width if width <= MAX_PICKED else 0
    part = min(PART, max(STRIP, triton.next_power_of_2(num_vocab)))
    num_parts = triton.cdiv(num_vocab, part)
    peaks, masses = (torch.empty(num_rows, num_parts, device=device) for _ in range(2))
    strips = torch.empty(num_rows, num_parts, part // STRIP, device=device)
    logprobs = torch.empty(num_rows, num_candidates, device=device)
    explored, explore_mask = aligned(2, num_rows, torch.uint8, device)
    if num_picked:
        ids, top = torch.empty(num_rows, num_candidates, dtype=torch.int64, device=device), final_logits
    else:
        top, ids = final_logits.topk(num_columns, dim=-1)
        ids = pad(ids, (0, num_candidates - num_columns)) if num_columns < num_candidates else ids
    if num_rows:
        scan_kernel[(num_rows, num_parts)](
            final_logits, tau, peaks, masses, strips, num_vocab, num_parts, *final_logits.stride(),
            # Not by the row alone: where the vocabulary is no multiple, the engine's rows may be padded or not.
            IS_ALIGNED=num_vocab % ALIGNMENT == 0 and final_logits.stride(0) % ALIGNMENT == 0,
            PART=part, STRIP=STRIP,
        )  # fmt: skip
        coin_kernel[(num_rows,)](
            peaks,
            masses,
            strips,
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
            num_vocab,
            *final_logits.stride(),
            PICKED=num_picked,
            PART=part,
            STRIP=STRIP,
            PARTS=max(num_picked, triton.next_power_of_2(num_parts)),
            BLOCK=width,
        )
    return FinalRows(ids, logprobs, explored.view(torch.bool), explore_mask.view(torch.bool))
