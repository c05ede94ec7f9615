"""Counter-based noise: a pure function of (seed, sample, position, stream), the same on every device and rank.

The mixer is that of splitmix64 in wrapping int64 arithmetic. It never touches torch's global generator, and its salt
keeps it apart from any other hash of (seed, position) in the engine.
"""

import numpy as np
import torch
from torch import Tensor

from led_sglang.ops.constants import (
    COUNTER_FACTOR,
    FIRST_FACTOR,
    SALT,
    SAMPLE_SHIFT,
    SECOND_FACTOR,
    SEED_FACTOR,
    STEP,
)
from led_sglang.ops.rows.numba_loops import fill_uniforms


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
        fill_uniforms(*(column.numpy() for column in (seed, sample, position)), uniform)
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
