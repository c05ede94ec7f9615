"""What the final layer tells of each row: a normalizer in one read of the logits, candidates and coin in one kernel."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from led_sglang.ops.types import LedRows

BLOCK = 1024
TILES_PER_PROGRAM = 8


@triton.jit  # type: ignore[untyped-decorator]
def log_mass_kernel(  # type: ignore[no-untyped-def]
    logits,  # (R, V)
    peak,  # (R,)
    tau,  # (R,)
    partial,  # (R, num_parts) float32
    num_vocab,
    num_parts,
    stride_row,
    stride_column,
    stride_peak,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    highest, row_tau = tl.load(peak + row * stride_peak).to(tl.float32), tl.load(tau + row)
    total = tl.zeros((BLOCK,), tl.float32)
    for tile in range(TILES):
        ids = (part * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        is_token = ids < num_vocab
        values = tl.load(logits + row * stride_row + ids * stride_column, mask=is_token, other=float("-inf"))
        total += tl.where(is_token, tl.exp((values.to(tl.float32) - highest) / row_tau), 0.0)
    tl.store(partial + row * num_parts + part, tl.sum(total, 0))


@triton.jit  # type: ignore[untyped-decorator]
def coin_kernel(  # type: ignore[no-untyped-def]
    top,  # (R, C): the largest logits
    partial,  # (R, num_parts) float32
    tau,  # (R,)
    top_k,  # (R,) int64
    min_p,  # (R,) float32
    active,  # (R,) bool
    exploits,  # (R,) bool
    full,  # (R,) bool
    coin,  # (R,) float64
    logprobs,  # (R, K) float32
    explored,  # (R,) uint8
    needed,  # (R,) uint8
    num_columns,  # C
    num_candidates,  # K >= C
    num_parts,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    parts, columns = tl.arange(0, PARTS), tl.arange(0, BLOCK)
    log_mass = tl.log(tl.sum(tl.load(partial + row * num_parts + parts, mask=parts < num_parts, other=0.0), 0))
    peak, row_tau = tl.load(top + row * num_columns).to(tl.float32), tl.load(tau + row)
    values = tl.load(top + row * num_columns + columns, mask=columns < num_columns, other=float("-inf"))
    logs = (values.to(tl.float32) - peak) / row_tau - log_mass
    largest = (peak - peak) / row_tau - log_mass  # NaN where the row is broken
    is_dropped = (columns >= num_columns) | (columns >= tl.load(top_k + row))
    is_dropped = is_dropped | (logs < largest + tl.log(tl.load(min_p + row)))
    tl.store(
        logprobs + row * num_candidates + columns,
        tl.where(is_dropped, float("-inf"), logs),
        mask=columns < num_candidates,
    )
    is_active = tl.load(active + row) != 0
    is_tails = tl.load(coin + row) + tl.exp(largest).to(tl.float64) < 1.0
    is_explored = is_active & (is_tails | (tl.load(exploits + row) == 0))
    tl.store(explored + row, is_explored.to(tl.uint8))
    tl.store(needed + row, (is_explored | (is_active & (tl.load(full + row) != 0))).to(tl.uint8))


def masses(final_logits: Tensor, top: Tensor, tau: Tensor) -> Tensor:
    """sum_v exp((logit_v - top_0) / tau) in parts: (R, V), (R, C), (R,) -> (R, num_parts)."""
    num_rows, num_vocab = final_logits.shape
    num_parts = max(1, -(-num_vocab // (BLOCK * TILES_PER_PROGRAM)))
    partial = torch.empty(num_rows, num_parts, device=final_logits.device)
    if num_rows:
        log_mass_kernel[(num_rows, num_parts)](
            final_logits,
            top,
            tau,
            partial,
            num_vocab,
            num_parts,
            *final_logits.stride(),
            top.stride(0),
            BLOCK=BLOCK,
            TILES=TILES_PER_PROGRAM,
        )
    return partial


@dataclass(frozen=True)
class FinalRows:
    """What the final layer tells, and what its coin says."""

    candidate_ids: Tensor  # (R, K) int64, most probable first
    logprobs: Tensor  # (R, K) float32, -inf where the row may not use it; all NaN in a broken row
    explored: Tensor  # (R,) bool
    needed: Tensor  # (R,) bool: explored, or in its phase and `full`


def final_rows(final_logits: Tensor, tau: Tensor, rows: LedRows, coin: Tensor) -> FinalRows:
    """(R, V), (R,), (R,) float64: Eq. 1 and 3 as in `fused.final_layer`."""
    num_rows, num_candidates = len(final_logits), rows.max_top_k
    num_columns = min(num_candidates, final_logits.shape[-1])
    top, ids = final_logits.topk(num_columns, dim=-1)
    partial = masses(final_logits, top, tau)
    logprobs = torch.empty(num_rows, num_candidates, device=top.device)
    explored, needed = torch.empty(2, num_rows, dtype=torch.uint8, device=top.device).unbind()
    if num_rows:
        coin_kernel[(num_rows,)](
            top,
            partial,
            tau,
            rows.top_k,
            rows.min_p,
            rows.active,
            rows.exploit,
            rows.full,
            coin.contiguous(),
            logprobs,
            explored,
            needed,
            num_columns,
            num_candidates,
            partial.shape[1],
            PARTS=triton.next_power_of_2(partial.shape[1]),
            BLOCK=triton.next_power_of_2(num_candidates),
        )
    if num_columns < num_candidates:
        ids = pad(ids, (0, num_candidates - num_columns))
    return FinalRows(ids, logprobs, explored.view(torch.bool), needed.view(torch.bool))
