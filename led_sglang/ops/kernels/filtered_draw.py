"""`ops.rows.filtered_draw` in two kernels: one over the parts of the vocabulary, one over the rows.

Rows that are to be skipped read nothing of their vocabulary. Sums are integers, so neither the parts nor the number of
programs changes a token.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from led_sglang.ops import constants
from led_sglang.ops.types import Filters, Support

PART = 1024  # tokens summed at once
NUM_PROGRAMS = 1024  # of the first kernel, for all rows: enough to keep a GPU's memory busy, few where all are skipped
# As the kernels may read globals.
ONE, NO_LIMIT = tl.constexpr(constants.ONE), tl.constexpr(constants.NO_LIMIT)
PIVOTS = tl.constexpr(8)  # patterns tried at once: a search of 30 bits takes ten rounds


@triton.jit  # type: ignore[untyped-decorator]
def probabilities(probs, row, part, vocab, stride, PART: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a part of a row: its ids, and float32 probabilities in [0, 1], 0 for what is none."""
    ids = part * PART + tl.arange(0, PART)
    p = tl.load(probs + row * stride + ids, mask=ids < vocab, other=0.0).to(tl.float32)
    return ids, tl.where((p > 0.0) & (p < 2.0), tl.minimum(p, 1.0), 0.0)


@triton.jit
def units(p):  # type: ignore[no-untyped-def]
    return (p * ONE).to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def parts_kernel(  # type: ignore[no-untyped-def]
    probs,  # (B, V)
    rows,  # (S,) int64
    skip,  # (S,) bool
    masses,  # (S, num_parts) int64, written: the sum of a part
    peaks,  # (S, num_parts) int32, written: the bits of its largest probability
    vocab,
    num_parts,
    stride,
    PART: tl.constexpr,
):
    slot = tl.program_id(0)
    if tl.load(skip + slot) == 0:
        row = tl.load(rows + slot)
        for part in range(tl.program_id(1), num_parts, tl.num_programs(1)):
            _, p = probabilities(probs, row, part, vocab, stride, PART)
            tl.store(masses + slot * num_parts + part, tl.sum(units(p), 0))
            tl.store(peaks + slot * num_parts + part, tl.max(p, 0).to(tl.int32, bitcast=True))


@triton.jit  # type: ignore[untyped-decorator]
def draw_kernel(  # type: ignore[no-untyped-def]
    probs,  # (B, V)
    rows,  # (S,) int64
    skip,  # (S,) bool
    uniform,  # (S,) float64
    top_k,  # (B,) integers
    top_p,  # (B,) float32
    min_p,  # (B,) float32
    masses,  # (S, num_parts) int64
    peaks,  # (S, num_parts) int32
    tokens,  # (S,) int64, written
    floors,  # (S,) int32, written
    ties,  # (S,) int64, written
    vocab,
    num_parts,
    stride,
    PART: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """The floor of a row by a search over bit patterns, PIVOTS at a time, then the kept id at its uniform.

    A program: one row. Each round of the search reads the parts that may hold something above the floor.
    """
    slot = tl.program_id(0)
    token, floor, num_ties = slot.to(tl.int64) * 0, slot * 0, slot.to(tl.int64) * 0 + vocab
    if tl.load(skip + slot) == 0:
        row = tl.load(rows + slot)
        parts = tl.arange(0, BLOCK_PARTS)
        at = slot * num_parts + parts
        mass = tl.load(masses + at, mask=parts < num_parts, other=0)  # of the kept tokens of a part
        peak = tl.max(tl.load(peaks + at, mask=parts < num_parts, other=0), 0)
        num_equal = tl.zeros((BLOCK_PARTS,), tl.int64)  # tokens of a part that equal the floor
        unit = slot.to(tl.int64) * 0  # what one of them weighs
        k, share = tl.load(top_k + row).to(tl.int64), tl.load(top_p + row)
        low = (peak.to(tl.float32, bitcast=True) * tl.load(min_p + row)).to(tl.int32, bitcast=True)
        limit = tl.where(share < 1.0, (share.to(tl.float64) * ONE).to(tl.int64), NO_LIMIT)
        if (k < vocab) | (limit < ONE) | (low > 0):
            high = peak
            while low < high:
                step = (high - low) // PIVOTS + 1
                pivots = low + step * tl.arange(0, PIVOTS)
                count, above = tl.zeros((PIVOTS,), tl.int64), tl.zeros((PIVOTS,), tl.int64)
                for part in range(num_parts):
                    if tl.load(peaks + slot * num_parts + part) > low:
                        _, p = probabilities(probs, row, part, vocab, stride, PART)
                        is_above = p.to(tl.int32, bitcast=True)[:, None] > pivots[None, :]
                        count += tl.sum(is_above.to(tl.int64), 0)
                        above += tl.sum(tl.where(is_above, units(p)[:, None], 0), 0)
                num_low = tl.sum(((count >= k) | (above > limit)).to(tl.int32), 0)  # pivots that lie under the floor
                high = tl.where(num_low < PIVOTS, tl.minimum(high, low + num_low * step), high)
                low = tl.where(num_low > 0, low + (num_low - 1) * step + 1, low)
            floor, mass = high, mass * 0
            unit = units(floor.to(tl.float32, bitcast=True))
            num_above = slot.to(tl.int64) * 0
            for part in range(num_parts):
                if tl.load(peaks + slot * num_parts + part) >= floor:
                    _, p = probabilities(probs, row, part, vocab, stride, PART)
                    bits = p.to(tl.int32, bitcast=True)
                    num_above += tl.sum((bits > floor).to(tl.int64), 0)
                    is_part = parts == part
                    mass = tl.where(is_part, tl.sum(tl.where(bits > floor, units(p), 0), 0), mass)
                    num_equal = tl.where(is_part, tl.sum((bits == floor).to(tl.int64), 0), num_equal)
            num_ties = k - num_above
            if unit > 0:
                num_ties = tl.minimum(num_ties, (limit - tl.sum(mass, 0)) // unit + 1)
            before = tl.cumsum(num_equal, 0) - num_equal
            mass += tl.minimum(tl.maximum(num_ties - before, 0), num_equal) * unit
        total = tl.sum(mass, 0)
        target = tl.minimum((tl.load(uniform + slot) * total.to(tl.float64)).to(tl.int64), total - 1)
        part = tl.sum((tl.cumsum(mass, 0) <= target).to(tl.int32), 0)
        target -= tl.sum(tl.where(parts < part, mass, 0), 0)
        ids, p = probabilities(probs, row, part, vocab, stride, PART)
        bits = p.to(tl.int32, bitcast=True)
        is_equal = (bits == floor) & (ids < vocab)
        rank = tl.cumsum(is_equal.to(tl.int64), 0) + tl.sum(tl.where(parts < part, num_equal, 0), 0)
        kept = tl.where((bits > floor) | (is_equal & (rank <= num_ties)), units(p), 0)
        token = (part * PART + tl.sum((tl.cumsum(kept, 0) <= target).to(tl.int32), 0)).to(tl.int64)
    tl.store(tokens + slot, token)
    tl.store(floors + slot, floor)
    tl.store(ties + slot, num_ties)


@triton.jit(do_not_specialize=["vocab", "stride"])  # type: ignore[untyped-decorator]
def softmax_kernel(  # type: ignore[no-untyped-def]
    logits,  # (B, V)
    rows,  # (S,) int64
    skip,  # (S,) bool
    tau,  # (S,) float32
    probs,  # (S, V) float32, written where not skipped
    vocab,
    stride,
    PART: tl.constexpr,
):
    """softmax(logits / tau). A program: one row, read twice."""
    slot = tl.program_id(0).to(tl.int64)
    if tl.load(skip + slot) == 0:
        row, scale = tl.load(rows + slot), tl.load(tau + slot)
        peak, total = tl.full((), float("-inf"), tl.float32), tl.full((), 0.0, tl.float32)
        for start in range(0, vocab, PART):
            ids = start + tl.arange(0, PART)
            part = tl.load(logits + row * stride + ids, mask=ids < vocab, other=float("-inf")).to(tl.float32) / scale
            larger = tl.maximum(peak, tl.max(part, 0))
            shift = tl.where(larger == float("-inf"), 0.0, larger)
            total = total * tl.exp(peak - shift) + tl.sum(tl.exp(part - shift), 0)
            peak = larger
        for start in range(0, vocab, PART):
            ids = start + tl.arange(0, PART)
            part = tl.load(logits + row * stride + ids, mask=ids < vocab, other=float("-inf")).to(tl.float32) / scale
            tl.store(probs + slot * vocab + ids, tl.exp(part - peak) / total, mask=ids < vocab)


def softmax_rows(logits: Tensor, rows: Tensor, skip: Tensor, tau: Tensor) -> Tensor:
    """See `led_sglang.ops.backend.Backend.softmax_rows`."""
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    probs = torch.empty(len(rows), logits.shape[1], device=logits.device)
    if len(rows):
        softmax_kernel[(len(rows),)](
            logits, rows, skip, tau, probs, logits.shape[1], logits.stride(0), PART=4 * PART, num_warps=8
        )
    return probs


def sample_filtered(
    probs: Tensor, rows: Tensor, skip: Tensor, uniform: Tensor, filters: Filters
) -> tuple[Tensor, Support]:
    """See `led_sglang.ops.backend.Backend.sample_filtered`."""
    probs = probs if probs.stride(1) == 1 else probs.contiguous()
    (num_rows,), vocab, device = rows.shape, probs.shape[1], probs.device
    num_parts = triton.cdiv(vocab, PART)
    masses = torch.empty(num_rows, num_parts, dtype=torch.int64, device=device)
    peaks = torch.empty(num_rows, num_parts, dtype=torch.int32, device=device)
    tokens, num_ties = torch.empty_like(rows), torch.empty_like(rows)
    floor = torch.empty(num_rows, dtype=torch.int32, device=device)
    if num_rows:
        programs = max(1, min(num_parts, NUM_PROGRAMS // num_rows))
        parts_kernel[(num_rows, programs)](
            probs, rows, skip, masses, peaks, vocab, num_parts, probs.stride(0), PART=PART
        )
        draw_kernel[(num_rows,)](
            probs, rows, skip, uniform, filters.top_k, filters.top_p, filters.min_p, masses, peaks, tokens, floor,
            num_ties, vocab, num_parts, probs.stride(0), PART=PART, BLOCK_PARTS=triton.next_power_of_2(num_parts),
            num_warps=8,
        )  # fmt: skip
    return tokens, Support(floor, num_ties)
