"""`led_sglang.ops.backends.one_pass.fill_mask` in one kernel.

No GPU has timed it; it saves launches, and nothing depends on it but `backends.triton`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from led_sglang.ops.kernels.common import row_idx_of
from led_sglang.ops.types import LedRows, StepInputs

BLOCK = 64


@triton.jit(do_not_specialize=["num_rows", "has_index"])  # type: ignore[untyped-decorator]
def one_pass_mask_kernel(  # type: ignore[no-untyped-def]
    active,  # (R,) bool, like the next two
    exploits,
    trace,
    depth,  # (R,) int64
    coin_uniform,  # (R,) float64
    temperature,  # (R,) float32
    greedy,  # (R,) bool
    latent_norm,  # (R,) bool
    latent_offset,  # (R,) int64
    index,  # (R,) int64, where has_index
    mask,  # (B,) bool, written
    tau,  # (B,) float32, written
    num_rows,
    coin_threshold,
    has_index,
    BLOCK: tl.constexpr,
):
    """mask: active, depth > 1, no norm, no offset, and u < threshold or trace or no exploit. A program: BLOCK rows."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = rows < num_rows
    is_likely = tl.load(coin_uniform + rows, mask=is_row, other=1.0) < coin_threshold
    is_likely = is_likely | (tl.load(exploits + rows, mask=is_row, other=1) == 0)
    is_likely = is_likely | (tl.load(trace + rows, mask=is_row, other=0) != 0)
    is_picked = is_likely & (tl.load(active + rows, mask=is_row, other=0) != 0)
    is_picked = is_picked & (tl.load(depth + rows, mask=is_row, other=0) > 1)
    is_picked = is_picked & (tl.load(latent_norm + rows, mask=is_row, other=0) == 0)
    is_picked = is_picked & (tl.load(latent_offset + rows, mask=is_row, other=0) == 0)
    is_greedy = tl.load(greedy + rows, mask=is_row, other=0) != 0
    row_tau = tl.where(is_greedy, 1.0, tl.load(temperature + rows, mask=is_row, other=1.0))
    row_idx = row_idx_of(index, rows, is_row, has_index)
    tl.store(mask + row_idx, is_picked.to(tl.uint8), mask=is_row)
    tl.store(tau + row_idx, row_tau, mask=is_row)


def fill_mask(
    rows: LedRows, inputs: StepInputs, coin_threshold: float, index: Tensor | None, mask: Tensor, tau: Tensor
) -> None:
    """See `led_sglang.ops.backend.Backend.one_pass_mask`."""
    num_rows = len(inputs.active)
    if num_rows:
        one_pass_mask_kernel[(triton.cdiv(num_rows, BLOCK),)](
            inputs.active,
            rows.exploit,
            rows.trace,
            rows.depth,
            inputs.coin_uniform,
            rows.temperature,
            rows.greedy,
            rows.latent_norm,
            rows.latent_offset,
            rows.depth if index is None else index,
            mask.view(torch.uint8),
            tau,
            num_rows,
            coin_threshold,
            int(index is not None),
            BLOCK=BLOCK,
        )
