"""Counter-based noise: a pure function of (seed, sample, position, stream), the same on every device and rank.

The mixer is that of splitmix64 in wrapping int64 arithmetic. It never touches torch's global generator, and its salt
keeps it apart from any other hash of (seed, position) in the engine.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from led_sglang.jit import jit

SALT = 0x4C61746E745F4C44
STEP = -0x61C8864680B583EB  # 2^64 / golden ratio, as int64
FIRST_FACTOR = -0x40A7B892E31B1A47
SECOND_FACTOR = -0x6B2FB644ECCEEE15
SEED_FACTOR = 0x2545F4914F6CDD1D
COUNTER_FACTOR = -0x2E8A5C19D37B6F4B
SAMPLE_SHIFT = 40  # positions below 2^40 and samples below 2^24 never meet


def mix(state: Tensor) -> Tensor:
    """A bijection of 64 bits in which every input bit moves every output bit; in place."""
    for shift, factor in ((30, FIRST_FACTOR), (27, SECOND_FACTOR)):
        state.bitwise_xor_((state >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(factor)
    return state.bitwise_xor_((state >> 31).bitwise_and_((1 << 33) - 1))


def uniforms(seed: Tensor, sample: Tensor, position: Tensor, num_streams: int = 2) -> Tensor:
    """(R,) int64 each -> (num_streams, R) float64 in [0, 1): 53 random bits. Nothing is modified; graph-safe.

    On the CPU compiled: the same bits, without thirty-five small torch calls.
    """
    if seed.device.type == "cpu":
        uniform = np.empty((num_streams, len(seed)))
        _fill(*(column.numpy().view(np.uint64) for column in (seed, sample, position)), uniform)
        return torch.from_numpy(uniform)
    return torch_uniforms(seed, sample, position, num_streams)


def torch_uniforms(seed: Tensor, sample: Tensor, position: Tensor, num_streams: int) -> Tensor:
    """`uniforms` in torch, for every device."""
    counter = (sample << SAMPLE_SHIFT).add_(position)
    # Seed and counter enter with unrelated odd factors, so that neighbours in one never meet neighbours in the other.
    keyed = mix((seed * SEED_FACTOR).add_(counter.mul_(COUNTER_FACTOR)).add_(SALT))
    streams = torch.arange(1, num_streams + 1, device=seed.device)[:, None] * STEP  # (num_streams, 1)
    bits = mix(keyed + streams)  # (num_streams, R)
    return (bits >> 11).bitwise_and_((1 << 53) - 1).to(torch.float64).mul_(2.0**-53)


_SALT, _STEP, _SEED_FACTOR, _COUNTER_FACTOR, _FIRST_FACTOR, _SECOND_FACTOR = (
    np.uint64(word % 2**64) for word in (SALT, STEP, SEED_FACTOR, COUNTER_FACTOR, FIRST_FACTOR, SECOND_FACTOR)
)


@jit
def _mix(state: Any) -> Any:
    state = (state ^ (state >> np.uint64(30))) * _FIRST_FACTOR
    state = (state ^ (state >> np.uint64(27))) * _SECOND_FACTOR
    return state ^ (state >> np.uint64(31))


@jit
def _fill(seed: Any, sample: Any, position: Any, uniform: Any) -> None:
    """(R,) uint64 each; (num_streams, R) float64, written."""
    num_streams, num_rows = uniform.shape
    for r in range(num_rows):
        counter = (sample[r] << np.uint64(SAMPLE_SHIFT)) + position[r]
        keyed = _mix(seed[r] * _SEED_FACTOR + counter * _COUNTER_FACTOR + _SALT)
        for stream in range(num_streams):
            keyed += _STEP
            uniform[stream, r] = (_mix(keyed) >> np.uint64(11)) * 2.0**-53
