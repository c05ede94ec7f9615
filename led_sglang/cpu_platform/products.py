"""Matrix products of a few rows with a large weight, block by block.

A decode step multiplies a few rows by every weight of the model. MKL lays out the whole weight anew for that, which
costs more than the product; of 1,024 columns at a time it does not leave the cache. And where oneDNN has no kernels for
16-bit types (an x86 CPU without AVX-512), torch multiplies them in loops that are 3 to 8 times slower than float32.
There a block of the weight is widened and multiplied in float32, and the result is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["addmm", "install", "mm", "override"]

BLOCK_COLUMNS = 1024
WIDENED_COLUMNS = 512  # 1.8 MB of a hidden size of 896
MAX_BLOCK_ROWS = 256  # of float32; beyond, the layout is a small part
MIN_WIDENED_ROWS = 3  # one or two rows are read-bound, and 16 bits are less to read

_library: Any = None  # torch.library.Library, which lives as long as the process


def install() -> None:
    """For every product of two matrices of this process, unless others were put in place."""
    if _library is None:
        override(mm, addmm)


def override(new_mm: Callable[..., Tensor], new_addmm: Callable[..., Tensor]) -> None:
    """torch's `mm` and `addmm` on the CPU, the last call's. Their `.out` forms remain torch's own."""
    global _library
    if _library is not None:
        _library._destroy()
    make: Any = torch.library.Library  # has no types
    _library = make("aten", "IMPL")
    _library.impl("mm", new_mm, "CPU")
    _library.impl("addmm", new_addmm, "CPU")


def mm(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) times b (K, N), of one type: (M, N) in that type."""
    width = _block_width(a, b)
    if not width:
        product: Tensor = torch.ops.aten.mm.out(a, b, out=a.new_empty(len(a), b.shape[1]))
        return product
    return _in_blocks(a, b, width, None)


def addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * bias + alpha * a b, with a bias that broadcasts to (M, N)."""
    width = _block_width(a, b) if bias.dim() == 1 and len(bias) == b.shape[1] and alpha == beta == 1 else 0
    if not width:
        out = a.new_empty(len(a), b.shape[1])
        product: Tensor = torch.ops.aten.addmm.out(bias, a, b, beta=beta, alpha=alpha, out=out)
        return product
    return _in_blocks(a, b, width, bias)


@cache
def _is_slow(dtype: torch.dtype) -> bool:
    """Whether this CPU has no kernels of its own for a 16-bit type."""
    if dtype == torch.bfloat16:
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported()


def _block_width(a: Tensor, b: Tensor) -> int:
    """Columns of a block; 0 where the product is better left to torch."""
    rows, columns = len(a), b.shape[1]
    if not (rows and columns and a.shape[1]) or a.dtype != b.dtype:
        return 0
    if a.dtype == torch.float32:
        return BLOCK_COLUMNS if 1 < rows <= MAX_BLOCK_ROWS and columns >= 2 * BLOCK_COLUMNS else 0
    return WIDENED_COLUMNS if rows >= MIN_WIDENED_ROWS and _is_slow(a.dtype) else 0


def _in_blocks(a: Tensor, b: Tensor, width: int, bias: Tensor | None) -> Tensor:
    out = a.new_empty(len(a), b.shape[1])
    is_wide = a.dtype == torch.float32
    wide_a = a.float()
    widened = None if is_wide else torch.empty(min(width, b.shape[1]), len(b))  # (columns, K), as a weight lies
    for start in range(0, b.shape[1], width):
        columns = slice(start, min(start + width, b.shape[1]))
        block, target = b[:, columns], out[:, columns]
        if widened is not None:
            block = widened[: block.shape[1]].copy_(block.t()).t()
            target = torch.empty(target.shape)
        if bias is None:
            torch.ops.aten.mm.out(wide_a, block, out=target)
        else:
            torch.ops.aten.addmm.out(bias[columns].float(), wide_a, block, out=target)
        if widened is not None:
            out[:, columns] = target
    return out
