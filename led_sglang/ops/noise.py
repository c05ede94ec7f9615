"""Counter-based noise: a pure function of (seed, sample, position, stream), the same on every device and rank.

The mixer is that of splitmix64 in wrapping int64 arithmetic. It never touches torch's global generator, and its salt
keeps it apart from any other hash of (seed, position) in the engine.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

Signed = np.ndarray[Any, np.dtype[np.int64]]
Bits = np.ndarray[Any, np.dtype[np.uint64]]

SALT = 0x4C61746E745F4C44
STEP = -0x61C8864680B583EB  # 2^64 / golden ratio, as int64
FIRST_FACTOR = -0x40A7B892E31B1A47
SECOND_FACTOR = -0x6B2FB644ECCEEE15
SEED_FACTOR = 0x2545F4914F6CDD1D
COUNTER_FACTOR = -0x2E8A5C19D37B6F4B
BLOCK_POSITIONS = 32
SAMPLE_SHIFT = 40  # positions below 2^40 and samples below 2^24 never meet


def mix(state: Tensor) -> Tensor:
    """A bijection of 64 bits in which every input bit moves every output bit; in place."""
    for shift, factor in ((30, FIRST_FACTOR), (27, SECOND_FACTOR)):
        state.bitwise_xor_((state >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(factor)
    return state.bitwise_xor_((state >> 31).bitwise_and_((1 << 33) - 1))


def uniforms(seed: Tensor, sample: Tensor, position: Tensor, num_streams: int = 2) -> Tensor:
    """(R,) int64 each -> (num_streams, R) float64 in [0, 1): 53 random bits. Nothing is modified; graph-safe.

    On the CPU by numpy: the same bits, at a fifth of the cost of as many small torch calls.
    """
    if seed.device.type == "cpu":
        return torch.from_numpy(_numpy_uniforms(seed.numpy(), sample.numpy(), position.numpy(), num_streams))
    return torch_uniforms(seed, sample, position, num_streams)


def torch_uniforms(seed: Tensor, sample: Tensor, position: Tensor, num_streams: int) -> Tensor:
    """`uniforms` in torch, for every device."""
    counter = (sample << SAMPLE_SHIFT).add_(position)
    # Seed and counter enter with unrelated odd factors, so that neighbours in one never meet neighbours in the other.
    keyed = mix((seed * SEED_FACTOR).add_(counter.mul_(COUNTER_FACTOR)).add_(SALT))
    streams = torch.arange(1, num_streams + 1, device=seed.device)[:, None] * STEP  # (num_streams, 1)
    bits = mix(keyed + streams)  # (num_streams, R)
    return (bits >> 11).bitwise_and_((1 << 53) - 1).to(torch.float64).mul_(2.0**-53)


def _word(value: int) -> Bits:
    """A 64-bit word as a 1-element array: scalars would be boxed, and would warn where they wrap."""
    return np.array([value % 2**64], dtype=np.uint64)


_SALT, _STEP, _SEED_FACTOR, _COUNTER_FACTOR = map(_word, (SALT, STEP, SEED_FACTOR, COUNTER_FACTOR))
_ROUNDS = ((_word(30), _word(FIRST_FACTOR)), (_word(27), _word(SECOND_FACTOR)))
_LAST_SHIFT, _MANTISSA_SHIFT = _word(31), _word(11)


def _numpy_mix(state: Bits) -> Bits:
    for shift, factor in _ROUNDS:
        state = (state ^ (state >> shift)) * factor
    return state ^ (state >> _LAST_SHIFT)


def _numpy_uniforms(seed: Signed, sample: Signed, position: Signed, num_streams: int) -> np.ndarray[Any, Any]:
    """(R,), (R,) and (..., R) -> (..., num_streams, R)."""
    counter = ((sample << SAMPLE_SHIFT) + position).view(np.uint64)
    keyed = _numpy_mix(seed.view(np.uint64) * _SEED_FACTOR + counter * _COUNTER_FACTOR + _SALT)
    streams = np.arange(1, num_streams + 1, dtype=np.uint64)[:, None] * _STEP  # (num_streams, 1)
    bits = _numpy_mix(keyed[..., None, :] + streams) >> _MANTISSA_SHIFT
    uniform: np.ndarray[Any, Any] = bits * 2.0**-53
    return uniform


class NoiseStream:
    """The uniforms of each row of a batch, step after step.

    On the CPU a block of positions is drawn at once: while a batch keeps its rows they advance together, and twenty
    small numpy calls at every step were a hundredth of a small model's time. Elsewhere, and where rows do not
    advance together (a prefill, a retraction), the result is the same, only later.
    """

    def __init__(self, seed: Tensor, sample: Tensor, num_streams: int = 2) -> None:
        self.seed, self.sample, self.num_streams = seed, sample, num_streams  # (R,) int64 each
        self._block: Iterator[tuple[list[int], Tensor]] = iter(())  # positions to come and their noise

    def at(self, position: Tensor) -> Tensor:
        """(R,) int64 -> (num_streams, R) float64, as `uniforms`."""
        if position.device.type != "cpu":
            return uniforms(self.seed, self.sample, position, self.num_streams)
        wanted = position.tolist()
        expected, noise = next(self._block, (None, None))
        if noise is None or expected != wanted:
            self._block = self._ahead(position.numpy())
            _, noise = next(self._block)
        return noise

    def _ahead(self, first: Signed) -> Iterator[tuple[list[int], Tensor]]:
        positions = first + np.arange(BLOCK_POSITIONS)[:, None]  # (BLOCK_POSITIONS, R)
        block = _numpy_uniforms(self.seed.numpy(), self.sample.numpy(), positions, self.num_streams)
        return zip(positions.tolist(), torch.from_numpy(block).unbind(), strict=True)
