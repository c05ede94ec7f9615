"""What kernels share: columns of a step, one entry a row, as Triton wants them; sizes they are compiled for; tanh.

A kernel is compiled for each value of its constexpr arguments and for the alignment of its pointers, which stops every
request of a server for a second. So what requests choose is never a constexpr by itself: a flag (an index, a trace, a
row that has its sums already) is a runtime argument, and a size is rounded up to one of a few. `ops.warm_up` runs the
variants that are left before a server takes its first request.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from led_sglang.ops.types import ALIGNMENT

WIDTHS = (8, 16, 64, 256)  # columns of candidates that kernels are compiled for; beyond, the next power of 4


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


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    return 1 - 2 / (tl.exp(2 * x) + 1)


def aligned(count: int, num_rows: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """So many (num_rows,) columns, uninitialised, each aligned."""
    width = triton.cdiv(num_rows, ALIGNMENT) * ALIGNMENT
    return torch.empty(count, width, dtype=dtype, device=device)[:, :num_rows].unbind()
