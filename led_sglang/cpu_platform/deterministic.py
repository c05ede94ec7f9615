"""`--enable-deterministic-inference` on the CPU: a row's numbers do not depend on what is in the batch beside it.

SGLang does it with Triton kernels and a seeded sampler from its own CPU kernels, neither of which a CPU without them
runs. The same is had from plain PyTorch: matrix products of always the same number of rows (MKL picks its kernel, and
with it the order of its sums, by that number), attention row by row (`attention.py`), and the sampler's hash in numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from led_sglang.cpu_platform import products

__all__ = ["allow", "install", "murmur_hash32"]

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
    wrapped = sampler.multinomial_with_seed  # by torch.compile, which needs a C++ compiler
    sampler.multinomial_with_seed = getattr(wrapped, "_torchdynamo_orig_callable", wrapped)
    sampler.murmur_hash32 = murmur_hash32


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


def murmur_hash32(seed: Tensor, positions: Tensor, columns: Tensor) -> Tensor:
    """MurmurHash3 (32 bits) of seed, position and column, as SGLang's seeded sampler has it on a GPU.

    seed: (n,) uint64; positions: (n,) and columns: (m,) integer. Returns (n, m) uint32.
    """
    seeds = seed.numpy().astype(np.uint64)
    words = (seeds & np.uint64(0xFFFFFFFF), seeds >> np.uint64(32), positions.numpy())
    state: Any = np.zeros((len(seeds), 1), np.uint32)
    for word in words:
        state = _mixed(state, word.astype(np.uint32)[:, None])
    state = _mixed(state, columns.numpy().astype(np.uint32)[None, :]) ^ np.uint32(16)  # bytes hashed
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ (state >> np.uint32(shift))) * np.uint32(factor)
    return torch.from_numpy(state ^ (state >> np.uint32(16)))


def _mixed(state: Any, word: Any) -> Any:
    word = _rotated(word * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
    return _rotated(state ^ word, 13) * np.uint32(5) + np.uint32(0xE6546B64)


def _rotated(value: Any, bits: int) -> Any:
    return value << np.uint32(bits) | value >> np.uint32(32 - bits)
