"""`led_sglang.ops.rows.stats.tell` in one kernel: torch launches twenty for the same few rows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from led_sglang.ops.rows import numba_loops
from led_sglang.ops.rows.inputs import Standing
from led_sglang.ops.rows.stats import Counters, bounds
from led_sglang.ops.types import LedStep

BLOCK = 64
# As the kernel may read globals.
THINKING, EXPLORED = tl.constexpr(numba_loops.THINKING), tl.constexpr(numba_loops.EXPLORED)
ACTIVE, FALLBACK = tl.constexpr(numba_loops.ACTIVE), tl.constexpr(numba_loops.FALLBACK)
DETAIL_SHIFT, DEPTH_SHIFT = tl.constexpr(numba_loops.DETAIL_SHIFT), tl.constexpr(numba_loops.DEPTH_SHIFT)
NOT_FINITE, LED_PLACE = tl.constexpr(numba_loops.NOT_FINITE), tl.constexpr(numba_loops.LED_PLACE)
THINKING_PLACE, REASON_PLACE = tl.constexpr(numba_loops.THINKING_PLACE), tl.constexpr(numba_loops.REASON_PLACE)
CONFIDENCE_PLACE, DEPTH_PLACE = tl.constexpr(numba_loops.CONFIDENCE_PLACE), tl.constexpr(numba_loops.DEPTH_PLACE)


@triton.jit(do_not_specialize=["num_rows", "method_place"])  # type: ignore[untyped-decorator]
def tell_kernel(  # type: ignore[no-untyped-def]
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
    method_place,
    NUM_BOUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
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
    told = thinks.to(tl.int64) * THINKING + is_active.to(tl.int64) * ACTIVE + explores.to(tl.int64) * EXPLORED
    told += tl.where(is_fine, (bucket << DETAIL_SHIFT) + (deep << DEPTH_SHIFT), 0)
    told += is_broken.to(tl.int64) * (FALLBACK + (NOT_FINITE << DETAIL_SHIFT))
    tl.store(flags + rows, told, mask=is_row)

    one = tl.full((BLOCK,), 1, tl.int64)
    nowhere = tl.zeros((BLOCK,), tl.int64)
    tl.atomic_add(counters + nowhere + LED_PLACE, one, mask=is_active)
    tl.atomic_add(counters + nowhere + THINKING_PLACE, one, mask=thinks)
    tl.atomic_add(counters + nowhere + (REASON_PLACE + NOT_FINITE), one, mask=is_broken)
    tl.atomic_add(counters + CONFIDENCE_PLACE + bucket, one, mask=is_fine)
    tl.atomic_add(counters + DEPTH_PLACE + deep, one, mask=explores)
    tl.atomic_add(counters + method_place + tl.load(method + rows, mask=is_row, other=0), one, mask=is_row)


def tell(now: Standing, step: LedStep, method: Tensor, counters: Counters) -> Tensor:
    """See `led_sglang.ops.rows.stats.tell`."""
    num_rows = len(method)
    flags = torch.empty_like(method)
    limits = bounds(method.device)
    if num_rows:
        columns = now.thinking, now.active, step.explored, step.ok, step.depth, step.confidence, method
        tell_kernel[(triton.cdiv(num_rows, BLOCK),)](
            *columns, limits, counters.values, flags, num_rows, counters.method_place,
            NUM_BOUNDS=len(limits), BLOCK=BLOCK,
        )  # fmt: skip
    return flags
