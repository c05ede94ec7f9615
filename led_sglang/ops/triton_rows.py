"""The final layer's normalizer in one read of the logits."""

import torch
import triton
import triton.language as tl
from torch import Tensor

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
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    highest, row_tau = tl.load(peak + row), tl.load(tau + row)
    total = tl.zeros((BLOCK,), tl.float32)
    for tile in range(TILES):
        ids = (part * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        is_token = ids < num_vocab
        values = tl.load(logits + row * stride_row + ids * stride_column, mask=is_token, other=float("-inf"))
        total += tl.where(is_token, tl.exp((values.to(tl.float32) - highest) / row_tau), 0.0)
    tl.store(partial + row * num_parts + part, tl.sum(total, 0))


def log_masses(final_logits: Tensor, peak: Tensor, tau: Tensor) -> Tensor:
    """As `led_sglang.ops.fused.log_masses`: (R, V), (R, 1), (R, 1) -> (R, 1)."""
    num_rows, num_vocab = final_logits.shape
    num_parts = max(1, -(-num_vocab // (BLOCK * TILES_PER_PROGRAM)))
    partial = torch.empty(num_rows, num_parts, device=final_logits.device)
    if num_rows:
        log_mass_kernel[(num_rows, num_parts)](
            final_logits,
            peak.contiguous(),
            tau.float().contiguous(),
            partial,
            num_vocab,
            num_parts,
            final_logits.stride(0),
            final_logits.stride(1),
            BLOCK=BLOCK,
            TILES=TILES_PER_PROGRAM,
        )
    return partial.sum(-1, keepdim=True).log_()
