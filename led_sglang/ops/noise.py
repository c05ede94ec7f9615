"""Counter-based noise: a pure function of (seed, sample, position, stream), the same on every device and rank.

The mixer is that of splitmix64 in wrapping int64 arithmetic. It never touches torch's global generator, and its salt
keeps it apart from any other hash of (seed, position) in the engine.
"""

import torch
from torch import Tensor

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
    """(R,) int64 each -> (num_streams, R) float64 in [0, 1): 53 random bits. Nothing is modified; graph-safe."""
    counter = (sample << SAMPLE_SHIFT).add_(position)
    # Seed and counter enter with unrelated odd factors, so that neighbours in one never meet neighbours in the other.
    keyed = mix((seed * SEED_FACTOR).add_(counter.mul_(COUNTER_FACTOR)).add_(SALT))
    streams = torch.arange(1, num_streams + 1, device=seed.device)[:, None] * STEP  # (num_streams, 1)
    bits = mix(keyed + streams)  # (num_streams, R)
    return (bits >> 11).bitwise_and_((1 << 53) - 1).to(torch.float64).mul_(2.0**-53)
