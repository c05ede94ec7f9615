"""The compiled draw against SGLang's own function: the same token for the same seed."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from sglang.srt.layers import sampler
from torch import Tensor

from led_sglang.cpu_platform import seeded_draw

COMPARE = """
import torch
from sglang.kernels.ops.sampling.murmur_hash import murmur_hash32_kernel
from led_sglang.cpu_platform.seeded_draw import murmur_hash32

seed = torch.tensor([0, 1, 42, 2**31, 2**63 - 1, -5]).to(torch.uint64)
positions, columns = torch.tensor([0, 7, 100, 2**20, 3, 1]), torch.arange(1500)
expected = torch.empty(6, 1500, dtype=torch.uint32)
murmur_hash32_kernel[(6, 2)](seed, positions, columns, expected, 6, 1500, BLOCK_SIZE=1024)
assert murmur_hash32(seed, positions, columns).tolist() == expected.tolist()
print("equal")
"""


def test_the_hash_is_sglangs_kernel() -> None:
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", COMPARE], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


@pytest.fixture(scope="module")
def stock() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """SGLang's function as it is written, with the hash above; other tests may have replaced the one in its module."""
    spec = importlib.util.spec_from_file_location("fresh_sampler", sampler.__file__)
    assert spec is not None and spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    fresh.murmur_hash32 = seeded_draw.murmur_hash32  # type: ignore[attr-defined]
    written: Callable[[Tensor, Tensor, Tensor], Tensor] = fresh.multinomial_with_seed._torchdynamo_orig_callable
    return written


@pytest.mark.parametrize("num_tokens", [1, 9, seeded_draw.BLOCK, 3 * seeded_draw.BLOCK + 7])
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0, 20.0])
def test_the_same_token(num_tokens: int, scale: float, stock: Callable[..., Tensor]) -> None:
    """400 draws of flat, ordinary and sharp rows, some of whose tokens have no weight."""
    generator = torch.Generator().manual_seed(6)
    logprobs = (scale * torch.randn(400, num_tokens, generator=generator)).log_softmax(-1)
    logprobs[:, 1::3] = -torch.inf
    seeds = torch.randint(-(2**62), 2**62, (400,), generator=generator)
    positions = torch.randint(0, 2**20, (400,), generator=generator)
    found = seeded_draw.draw(logprobs, seeds, positions)
    assert found.tolist() == stock(logprobs, seeds, positions).tolist()
    if num_tokens > 1:
        assert found.unique().numel() > 1, "it draws nothing"


def test_the_law_of_a_draw() -> None:
    """Shares of 40,000 seeds within five standard errors."""
    probs = torch.tensor([0.6, 0.0, 0.3, 0.09, 0.01])
    seeds = torch.arange(40_000)
    tokens = seeded_draw.draw(probs.log().expand(len(seeds), -1), seeds, torch.zeros_like(seeds))
    shares = torch.bincount(tokens.flatten(), minlength=5) / len(seeds)
    assert ((shares - probs).abs() <= 5 * (probs * (1 - probs) / len(seeds)).sqrt()).all()


@pytest.mark.parametrize("value", [float("nan"), -torch.inf])
def test_rows_without_a_number(value: float, stock: Callable[..., Tensor]) -> None:
    logprobs = torch.rand(3, 2500).log()
    logprobs[1] = value
    logprobs[2, 2100] = value
    seeds = torch.arange(3)
    assert seeded_draw.draw(logprobs, seeds, seeds).tolist() == stock(logprobs, seeds, seeds).tolist()


def test_the_engine_draws_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from led_sglang.cpu_platform import deterministic

    monkeypatch.setattr(sampler, "multinomial_with_seed", None)
    deterministic.install()
    assert sampler.multinomial_with_seed is seeded_draw.draw
