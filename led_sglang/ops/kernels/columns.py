"""The columns of a step, one entry a row, as Triton kernels want them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ALIGNMENT = 16  # a kernel is compiled anew for pointers that are no multiple of so many bytes


@triton.jit  # type: ignore[untyped-decorator]
def place_of(index, rows, is_row, HAS_INDEX: tl.constexpr):  # type: ignore[no-untyped-def]
    """Our rows' places in the batch."""
    places = rows
    if HAS_INDEX:
        places = tl.load(index + rows, mask=is_row, other=0)
    return places


def aligned(count: int, num_rows: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """So many (num_rows,) columns, uninitialised, each aligned."""
    width = triton.cdiv(num_rows, ALIGNMENT) * ALIGNMENT
    return torch.empty(count, width, dtype=dtype, device=device)[:, :num_rows].unbind()
