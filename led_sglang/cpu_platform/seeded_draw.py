"""SGLang's seeded draw, compiled: the same token, without a logarithm of random bits for each token of the vocabulary.

SGLang hashes seed, position and token id to 32 bits x (MurmurHash3), takes the noise -log(-log(x / (2^32 - 1))) and
draws the token with the largest sum of log-probability and noise (Gumbel's trick). Noise grows with x, so that a token
can only beat the best one so far where x is above a bound, which costs no logarithm. The few that remain are computed
exactly. 64 rows of 151,936 tokens take 40 ms of one core, in torch 264.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from led_sglang.jit import jit

__all__ = ["draw", "murmur_hash32"]

LARGEST = 4294967295.0  # of the hash
BLOCK = 1024  # tokens that are hashed at once
_FIRST, _SECOND = np.uint32(0xCC9E2D51), np.uint32(0x1B873593)
_THIRD, _FOURTH = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
_STEP, _FIVE = np.uint32(0xE6546B64), np.uint32(5)
_NUM_BYTES = np.uint32(16)  # hashed
_SPACING = 2.0**-32  # of x, which is how near to 1 it counts


def draw(logprobs: Tensor, seed: Tensor, positions: Tensor) -> Tensor:
    """A token id for each row: (n, 1) int64, as `sglang.srt.layers.sampler.multinomial_with_seed`.

    logprobs: (n, m) float, natural logarithms, of which -inf is never drawn before another; seed and positions: (n,)
    integer.
    """
    tokens = np.empty(len(logprobs), np.int64)
    _draw(
        logprobs.float().contiguous().numpy(),
        seed.to(torch.uint64).numpy(),
        positions.to(torch.int64).numpy(),
        np.empty(BLOCK, np.uint32),
        tokens,
    )
    return torch.from_numpy(tokens)[:, None]


def murmur_hash32(seed: Tensor, positions: Tensor, columns: Tensor) -> Tensor:
    """MurmurHash3 (32 bits) of seed, position and column, as SGLang's seeded sampler has it on a GPU.

    seed: (n,) uint64; positions: (n,) and columns: (m,) integer. Returns (n, m) uint32.
    """
    hashes = np.empty((len(seed), len(columns)), np.uint32)
    _hash_rows(seed.numpy(), positions.to(torch.int64).numpy(), columns.to(torch.int64).numpy(), hashes)
    return torch.from_numpy(hashes)


@jit
def _times(value: Any, factor: Any) -> Any:
    return np.uint32(value * factor)  # numba widens a product of 32 bits to 64


@jit
def _rotated(value: Any, bits: int) -> Any:
    return np.uint32((np.uint64(value) << np.uint64(bits)) | (np.uint64(value) >> np.uint64(32 - bits)))


@jit
def _shifted(value: Any, bits: int) -> Any:
    return np.uint32(value ^ (value >> np.uint32(bits)))


@jit
def _mixed(state: Any, word: Any) -> Any:
    word = _times(_rotated(_times(word, _FIRST), 15), _SECOND)
    return np.uint32(_times(_rotated(np.uint32(state ^ word), 13), _FIVE) + _STEP)


@jit
def _prefix(seed: Any, position: Any) -> Any:
    """The state before the token id, which is hashed last."""
    state = _mixed(np.uint32(0), np.uint32(seed & np.uint64(0xFFFFFFFF)))
    return _mixed(_mixed(state, np.uint32(seed >> np.uint64(32))), np.uint32(position))


@jit
def _hashed(prefix: Any, column: Any) -> Any:
    state = np.uint32(_mixed(prefix, np.uint32(column)) ^ _NUM_BYTES)
    state = _times(_shifted(state, 16), _THIRD)
    return _shifted(_times(_shifted(state, 13), _FOURTH), 16)


@jit
def _hash_rows(seeds: Any, positions: Any, columns: Any, hashes: Any) -> None:
    for r in range(len(seeds)):
        prefix = _prefix(seeds[r], positions[r])
        for j in range(len(columns)):
            hashes[r, j] = _hashed(prefix, columns[j])


@jit
def _noise(hashed: Any) -> float:
    x = hashed / LARGEST
    logarithm = math.log(x) if x > 0.0 else -1.7976931348623157e308
    return -math.log(-min(logarithm, -_SPACING))


@jit
def _draw(logprobs: Any, seeds: Any, positions: Any, hashes: Any, tokens: Any) -> None:
    num_rows, num_tokens = logprobs.shape
    for r in range(num_rows):
        prefix = _prefix(seeds[r], positions[r])
        best, best_token = -np.inf, 0
        for first in range(0, num_tokens, BLOCK):
            block = hashes[: min(BLOCK, num_tokens - first)]
            for j in range(len(block)):  # by itself, so that it is vectorized
                block[j] = _hashed(prefix, first + j)
            for j in range(len(block)):
                logprob = np.float64(logprobs[r, first + j])
                # It wins where x > exp(-exp(-lead)), which is more than 1 - 1 / (1 + lead + lead^2 / 2 + lead^3 / 6).
                lead = best - logprob
                if lead > 0.0:
                    powers = 1.0 + lead * (1.0 + lead * (0.5 + lead / 6.0))
                    if block[j] < LARGEST * (1.0 - 1.0 / powers) - 2.0:
                        continue
                value = logprob + _noise(block[j])
                if value > best:
                    best, best_token = value, first + j
                elif value != value:  # as torch.argmax has it, nothing is more than no number
                    best, best_token = np.inf, first + j
                    break
            if best == np.inf:
                break
        tokens[r] = best_token
