"""`led_sglang.ops.rows.stats.pack_flags` in one kernel: torch launches twenty for the same few rows.

No GPU has timed it; it saves launches, and nothing depends on it but `backends.triton`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from led_sglang import wire
from led_sglang.ops.types import Counters, LedStep, RowInputs

BLOCK = 64
# As the kernel may read globals.
THINKING, EXPLORED = tl.constexpr(wire.THINKING), tl.constexpr(wire.EXPLORED)
ACTIVE, FALLBACK = tl.constexpr(wire.ACTIVE), tl.constexpr(wire.FALLBACK)
DETAIL_SHIFT, DEPTH_SHIFT = tl.constexpr(wire.DETAIL_SHIFT), tl.constexpr(wire.DEPTH_SHIFT)
NOT_FINITE, LED_OFFSET = tl.constexpr(wire.NOT_FINITE), tl.constexpr(wire.LED_OFFSET)
THINKING_OFFSET, REASON_OFFSET = tl.constexpr(wire.THINKING_OFFSET), tl.constexpr(wire.REASON_OFFSET)
CONFIDENCE_OFFSET, DEPTH_OFFSET = tl.constexpr(wire.CONFIDENCE_OFFSET), tl.constexpr(wire.DEPTH_OFFSET)


@triton.jit(do_not_specialize=["num_rows", "method_offset"])  # type: ignore[untyped-decorator]
def pack_flags_kernel(  # type: ignore[no-untyped-def]
    thinking,  # (R,) bool, like the next three
    active,
    explored,
    ok,
    depth,  # (R,) int64
    confidence,  # (R,) float32
    method,  # (R,) int64
    bounds,  # (NUM_BOUNDS,) float64
    counters,  # int64
    flags,  # (R,) int64, written
    num_rows,
    method_offset,
    NUM_BOUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Flags of each row, and each counter raised by its rows; see `Backend.count`. A program: BLOCK rows."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = rows < num_rows
    thinks = tl.load(thinking + rows, mask=is_row, other=0) != 0
    is_active = tl.load(active + rows, mask=is_row, other=0) != 0
    is_fine = is_active & (tl.load(ok + rows, mask=is_row, other=0) != 0)
    is_broken = is_active & (is_fine == 0)
    explores = is_fine & (tl.load(explored + rows, mask=is_row, other=0) != 0)
    sure = tl.load(confidence + rows, mask=is_row, other=0).to(tl.float64)
    bucket = tl.zeros((BLOCK,), tl.int64)
    for i in range(NUM_BOUNDS):
        bucket += (tl.load(bounds + i) < sure).to(tl.int64)
    deep = tl.where(is_fine, tl.load(depth + rows, mask=is_row, other=0), 0)
    packed = thinks.to(tl.int64) * THINKING + is_active.to(tl.int64) * ACTIVE + explores.to(tl.int64) * EXPLORED
    packed += tl.where(is_fine, (bucket << DETAIL_SHIFT) + (deep << DEPTH_SHIFT), 0)
    packed += is_broken.to(tl.int64) * (FALLBACK + (NOT_FINITE << DETAIL_SHIFT))
    tl.store(flags + rows, packed, mask=is_row)

    # Relaxed: otherwise each addition would wait until the one before has reached memory.
    one = tl.full((BLOCK,), 1, tl.int64)
    nowhere = tl.zeros((BLOCK,), tl.int64)
    tl.atomic_add(counters + nowhere + LED_OFFSET, one, mask=is_active, sem="relaxed")
    tl.atomic_add(counters + nowhere + THINKING_OFFSET, one, mask=thinks, sem="relaxed")
    tl.atomic_add(counters + nowhere + (REASON_OFFSET + NOT_FINITE), one, mask=is_broken, sem="relaxed")
    tl.atomic_add(counters + CONFIDENCE_OFFSET + bucket, one, mask=is_fine, sem="relaxed")
    tl.atomic_add(counters + DEPTH_OFFSET + deep, one, mask=explores, sem="relaxed")
    method_at = counters + method_offset + tl.load(method + rows, mask=is_row, other=0)
    tl.atomic_add(method_at, one, mask=is_row, sem="relaxed")


def pack_flags(inputs: RowInputs, step: LedStep, method: Tensor, counters: Counters) -> Tensor:
    """Of a step that LED decided; see `led_sglang.ops.backend.Backend.count`."""
    num_rows = len(method)
    flags = torch.empty_like(method)
    limits = counters.bounds
    if num_rows:
        columns = inputs.thinking, inputs.active, step.explored, step.ok, step.depth, step.confidence, method
        pack_flags_kernel[(triton.cdiv(num_rows, BLOCK),)](
            *columns, limits, counters.values, flags, num_rows, counters.method_offset,
            NUM_BOUNDS=len(limits), BLOCK=BLOCK,
        )  # fmt: skip
    return flags
