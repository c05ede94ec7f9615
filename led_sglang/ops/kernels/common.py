"""What kernels share: columns of a step, one entry a row, as Triton wants them; sizes they are compiled for; tanh.

A kernel is compiled for each value of its constexpr arguments and for the alignment of its pointers, which stops every
request of a server for a second. So what requests choose is never a constexpr by itself: a flag (an index, a trace, a
row that has its sums already) is a runtime argument, and a size is rounded up to one of a few. `ops.warm_up` runs the
variants that are left before a server takes its first request.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from led_sglang.ops.types import ALIGNMENT

WIDTHS = (8, 16, 64, 256)  # columns of candidates that kernels are compiled for; beyond, the next power of 4
NUM_SMS = 132  # of an H200; of the GPU at hand where there is one


def size_up(count: int, sizes: tuple[int, ...]) -> int:
    """The smallest size that holds so many; four times the last one as often as it takes."""
    size = next((size for size in sizes if size >= count), sizes[-1])
    while size < count:
        size *= 4
    return size


def sizes_up_to(count: int, sizes: tuple[int, ...]) -> list[int]:
    """All that `size_up` gives for counts up to this one, ascending."""
    largest, found = size_up(count, sizes), [size for size in sizes if size <= size_up(count, sizes)]
    while found[-1] < largest:
        found.append(found[-1] * 4)
    return found


def width_of(num_candidates: int, is_fixed: bool = False) -> int:
    """Columns that a kernel holds for so many candidates.

    is_fixed: the same for any number up to the largest of WIDTHS. Sums over more columns are summed in another order,
    and under deterministic inference a row must not depend on how many candidates another one has.
    """
    return size_up(max(num_candidates, WIDTHS[-1]) if is_fixed else num_candidates, WIDTHS)


@triton.jit
def row_idx_of(index, rows, is_row, has_index):  # type: ignore[no-untyped-def]
    """Rows of the batch that our rows are: int64."""
    found = tl.load(index + rows, mask=is_row & (has_index != 0), other=0)
    return tl.where(has_index != 0, found, rows.to(tl.int64))


@cache
def num_sms(device: torch.device) -> int:
    """Of the GPU; of an H200 where kernels are interpreted, or compiled only."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else NUM_SMS


def is_interpreted() -> bool:
    """Triton's interpreter (TRITON_INTERPRET=1) runs kernels on CPU tensors, slowly."""
    return bool(triton.knobs.runtime.interpret)


@triton.jit
def is_missing(explore_mask, has_lse, rows, mask, has_known):  # type: ignore[no-untyped-def]
    """Whether the sums of a row's latents are to be computed: needed, and not known already."""
    is_needed = tl.load(explore_mask + rows, mask=mask, other=0) != 0
    return is_needed & (tl.load(has_lse + rows, mask=mask & (has_known != 0), other=0) == 0)


@triton.jit  # type: ignore[untyped-decorator]
def list_missing(listed, ranks, explore_mask, has_lse, num_batch, has_known, BLOCK_COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the rows of the batch that are missing, in order, and each row's rank among them; return their number.

    Every program writes all of it, the same.
    """
    found = 0
    for start in range(0, num_batch, BLOCK_COUNT):
        batch = start + tl.arange(0, BLOCK_COUNT)
        is_row = batch < num_batch
        lse_missing = is_missing(explore_mask, has_lse, batch, is_row, has_known)
        upto = tl.cumsum(lse_missing.to(tl.int32), 0)
        tl.store(listed + found + upto - 1, batch, mask=lse_missing)
        tl.store(ranks + batch, tl.where(lse_missing, found + upto - 1, -1), mask=is_row)
        found += tl.max(upto, 0)
    tl.store(ranks + num_batch, found)
    tl.debug_barrier()
    return found


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    return 1 - 2 / (tl.exp(2 * x) + 1)


def aligned(count: int, num_rows: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """So many (num_rows,) columns, uninitialised, each aligned."""
    width = triton.cdiv(num_rows, ALIGNMENT) * ALIGNMENT
    return torch.empty(count, width, dtype=dtype, device=device)[:, :num_rows].unbind()
