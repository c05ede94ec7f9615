"""The noise stream: uniform, and independent between streams, positions, samples and seeds.

Every test is a fixed computation, so it passes or fails for ever; the limits are set so that a perfect generator would
have failed any one of them with probability 1e-4.
"""

import pytest
import torch

from led_sglang.ops import uniforms
from led_sglang.ops.rows.noise import torch_uniforms

N = 1 << 16
KNOWN = [[3503615138528398, 6756830087484042], [6561959904529535, 2209300720287280]]  # 53 random bits each
CHI2_255 = 347.7  # the 1 - 1e-4 quantile of chi-square with 255 degrees of freedom
KOLMOGOROV = 2.23  # that of sqrt(n) * D
SEEDS = [0, 1, -1, 42, 2**63 - 1, -(2**63), 0x1234_5678_9ABC_DEF0]


def draw(seed=0, sample=0, position=0, num_streams=2):
    columns = [torch.as_tensor(x, dtype=torch.int64).expand(N).contiguous() for x in (seed, sample, position)]
    return uniforms(*columns, num_streams)


def chi_square(bins, num_bins):
    counts = torch.bincount(bins, minlength=num_bins).double()
    expected = counts.sum() / num_bins
    return ((counts - expected) ** 2 / expected).sum().item()


def check_uniform(u):
    assert (u >= 0).all() and (u < 1).all()
    assert chi_square((u * 256).long(), 256) < CHI2_255
    ranks = torch.arange(1, len(u) + 1, dtype=torch.float64) / len(u)
    assert (u.sort().values - ranks).abs().max() * len(u) ** 0.5 < KOLMOGOROV
    low_bits = (u * 2**53).long() & 255
    assert chi_square(low_bits, 256) < CHI2_255


def check_independent(a, b):
    cells = (a * 16).long() * 16 + (b * 16).long()
    assert chi_square(cells, 256) < CHI2_255
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) * N**0.5 < 3.9


COUNTERS = {
    "positions": {"position": torch.arange(N)},
    "samples": {"sample": torch.arange(N)},
    "seeds": {"seed": torch.arange(N)},
    "negative seeds": {"seed": -torch.arange(N)},
    "high seeds": {"seed": torch.arange(N) << 47},
    "distant positions": {"position": torch.arange(N) << 20},
}


@pytest.mark.parametrize("name", COUNTERS)
def test_uniform_along_each_counter_and_streams_independent(name):
    u = draw(**COUNTERS[name], num_streams=3)
    for stream in u:
        check_uniform(stream)
        check_independent(stream[:-1], stream[1:])
    for i, j in ((0, 1), (0, 2), (1, 2)):
        check_independent(u[i], u[j])
        check_independent(u[i][:-1], u[j][1:])  # the coin of one position and the token of the next


@pytest.mark.parametrize("seed", SEEDS)
def test_any_64_bit_seed(seed):
    u = draw(seed=seed, position=torch.arange(N))
    check_uniform(u[0])
    check_uniform(u[1])


def test_siblings_and_neighbouring_seeds_are_independent():
    position = torch.arange(N)
    base = draw(seed=7, position=position)[0]
    for other in ({"sample": 1}, {"sample": 15}, {"seed": 8}, {"seed": 7 + 2**32}, {"seed": -7}):
        check_independent(base, draw(**{"seed": 7, "position": position} | other)[0])


def test_every_counter_and_every_bit_of_the_seed_matter():
    seeds = torch.tensor([0] + [(1 << bit) - (1 << 64 if bit == 63 else 0) for bit in range(64)])
    zeros = torch.zeros_like(seeds)
    assert len(set(uniforms(seeds, zeros, zeros)[0].tolist())) == 65
    grid = torch.cartesian_prod(torch.arange(20), torch.arange(20), torch.arange(20))
    assert len(set(uniforms(*grid.T.contiguous()).flatten().tolist())) == 2 * 20**3


def test_a_value_depends_on_nothing_but_its_own_counters():
    seed, sample, position = torch.tensor([5, -6, 7]), torch.tensor([0, 1, 2]), torch.tensor([9, 8, 7])
    together = uniforms(seed, sample, position)
    alone = [uniforms(seed[i : i + 1], sample[i : i + 1], position[i : i + 1]) for i in range(3)]
    assert torch.equal(together, torch.cat(alone, dim=1))
    assert torch.equal(uniforms(seed, sample, position, 5)[:2], together)
    assert together.dtype == torch.float64 and uniforms(seed[:0], sample[:0], position[:0]).shape == (2, 0)


def test_known_values_never_change():
    """A seed named in a published run must give the same tokens with every later version."""
    u = uniforms(torch.tensor([0, -1]), torch.tensor([0, 3]), torch.tensor([0, 1000]))
    assert (u * 2**53).long().tolist() == KNOWN


def test_inputs_and_the_global_generator_stay_untouched():
    inputs = [torch.tensor([1]), torch.tensor([2]), torch.tensor([3])]
    before = torch.get_rng_state()
    uniforms(*inputs)
    assert torch.equal(torch.get_rng_state(), before) and [t.item() for t in inputs] == [1, 2, 3]


def test_compiled_code_and_torch_draw_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(3)
    seed = torch.randint(-(2**63), 2**63 - 1, (257,), generator=generator)
    sample = torch.randint(0, 64, (257,), generator=generator)
    position = torch.randint(0, 1 << 20, (257,), generator=generator)
    assert torch.equal(uniforms(seed, sample, position, 5), torch_uniforms(seed, sample, position, 5))
