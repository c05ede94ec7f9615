"""`--enable-deterministic-inference` on the CPU: a row's numbers do not depend on what is in the batch beside it.

SGLang does it with Triton kernels and a seeded sampler from its own CPU kernels, neither of which a CPU without them
runs. The same is had from plain PyTorch: matrix products of always the same number of rows (MKL picks its kernel, and
with it the order of its sums, by that number), attention row by row (`attention.py`), and a
draw that compiles without a C++ compiler (`seeded_draw.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from led_sglang.cpu_platform import products, seeded_draw

__all__ = ["allow", "install"]

BLOCK_ROWS = 32  # of every matrix product


def allow() -> None:
    """Add torch_native, the name of the attention of this platform, to SGLang's list of deterministic backends."""
    from sglang.srt import server_args

    if "torch_native" not in server_args.DETERMINISTIC_ATTENTION_BACKEND_CHOICES:
        server_args.add_deterministic_attention_backend_choices(["torch_native"])


def install() -> None:
    """Replace the functions that SGLang calls when the flag is set by ones that a CPU can run."""
    from sglang.srt import batch_invariant_ops
    from sglang.srt.layers import sampler

    batch_invariant_ops.enable_batch_invariant_mode = enable_batch_invariant_mode
    sampler.multinomial_with_seed = seeded_draw.draw  # SGLang's is wrapped by torch.compile, which needs a C++ compiler


def enable_batch_invariant_mode(enable_bmm: bool = True) -> None:
    """Products of two matrices in blocks of BLOCK_ROWS rows, for every caller of this process."""
    products.override(_mm, _addmm)


def _mm(a: Tensor, b: Tensor) -> Tensor:
    num_rows = len(a)
    padded = torch.nn.functional.pad(a, (0, 0, 0, -num_rows % BLOCK_ROWS))
    out = a.new_empty(len(padded), b.shape[1])
    for start in range(0, len(padded), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        out[block] = products.mm(padded[block], b)
    return out[:num_rows]


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return beta * bias + alpha * _mm(a, b)
