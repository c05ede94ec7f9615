"""Inputs for the op tests: layers that disagree sharply, so that a wrong layer, order or norm cannot hide."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from led_sglang.ops import BACKENDS, Head, LedRows, LedStep, LogitEdits, Noise, led_step

# "triton" needs a GPU or the interpreter: test_triton.py
CPU_BACKENDS = [name for name in BACKENDS if name != "triton"]
others = pytest.mark.parametrize("backend", [name for name in CPU_BACKENDS if name != "reference"])


def rms_norm(hidden: Tensor) -> Tensor:
    scaled = hidden.float() * hidden.float().square().mean(-1, keepdim=True).add(1e-6).rsqrt()
    return (2.0 * scaled).to(hidden.dtype)


def make_rows(num_rows: int, depth: int = 4, top_k: int = 8, **changes: Any) -> LedRows:
    """Every row asks for the same; `changes` replace whole columns (tensors) or set every row (scalars)."""
    columns: dict[str, Any] = {
        "active": True,
        "depth": depth,
        "top_k": top_k,
        "temperature": 0.6,
        "greedy": False,
        "exploit": True,
        "latent_norm": False,
        "normalize_layers": False,
        "latent_offset": 0,
        "min_p": 0.0,
        "full": False,
    }
    known = set(columns)
    columns.update({name: value for name, value in changes.items() if name in known})
    tensors = {
        name: value if isinstance(value, Tensor) else torch.full((num_rows,), value) for name, value in columns.items()
    }
    hosts = {
        "max_depth": int(tensors["depth"].max()) if num_rows else depth,
        "max_top_k": int(tensors["top_k"].max()) if num_rows else top_k,
        "any_trace": bool(tensors["full"].any()),
        "any_norm": bool(tensors["latent_norm"].any()),
        "all_norm": bool(tensors["latent_norm"].all()),
        "any_min_p": bool(tensors["min_p"].any()),
    }
    hosts["mixed_top_k"] = bool((tensors["top_k"] != hosts["max_top_k"]).any())
    hosts["mixed_depth"] = bool((tensors["depth"] != hosts["max_depth"]).any())
    hosts["any_greedy"] = bool(tensors["greedy"].any())
    hosts["any_normalize"] = bool(tensors["normalize_layers"].any())
    hosts["any_offset"] = bool(tensors["latent_offset"].any())
    return LedRows(**tensors, **hosts | {k: v for k, v in changes.items() if k not in known})


def to_device(rows: LedRows, device: str) -> LedRows:
    moved = {name: value.to(device) for name, value in vars(rows).items() if isinstance(value, Tensor)}
    return replace(rows, **moved)


@dataclass(frozen=True)
class Case:
    final_logits: Tensor
    latents: Tensor
    head: Head
    rows: LedRows
    noise: Noise
    edits: LogitEdits | None = None

    def run(self, backend: str = "auto") -> LedStep:
        arguments = (self.final_logits, self.latents, self.head, self.rows, self.noise)
        return led_step(*arguments, backend=backend, edits=self.edits)

    def with_head(self, **changes: Any) -> "Case":
        return replace(self, head=replace(self.head, **changes))

    def with_rows(self, **changes: Any) -> "Case":
        return replace(self, rows=replace(self.rows, **changes))


def make_case(
    num_rows: int = 17,
    vocab: int = 97,
    hidden: int = 64,
    depth: int = 4,
    top_k: int = 8,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    layers: int | None = None,
    explore: bool | None = None,
    device: str = "cpu",
    **changes: Any,
) -> Case:
    """Each row has six likely tokens, which every layer ranks differently. `explore` forces every coin.

    A large vocabulary needs a large `hidden`: the other tokens' logits have a spread of 22 / sqrt(hidden).
    """
    rng = torch.Generator().manual_seed(seed)
    rows = make_rows(num_rows, depth, top_k, **changes)
    num_layers = depth - 1 + int(rows.latent_offset.max() if num_rows else 0) if layers is None else layers
    weight = torch.randn(vocab, hidden, generator=rng).div_(hidden**0.5)
    favourites = torch.rand(num_rows, vocab, generator=rng).topk(min(6, vocab)).indices
    strength = (
        torch.randn(num_layers + 1, *favourites.shape, generator=rng).mul_(2).add_(9)
    )  # about the favourite's logit
    streams = torch.einsum("lrf,rfh->lrh", strength, weight[favourites])  # (D+1, R, H), the last layer first
    coin_uniform = torch.rand(num_rows, generator=rng, dtype=torch.float64)
    if explore is not None:
        coin_uniform = torch.full_like(coin_uniform, 0.0 if explore else 1 - 2**-53)
    token = torch.rand(num_rows, generator=rng, dtype=torch.float64)
    case_head = Head(weight.to(device, dtype), num_rows=vocab, final_norm=rms_norm)
    final_logits = (streams[0] @ weight.T).to(device)
    noise = Noise(coin_uniform.to(device), token.to(device))
    return Case(final_logits, streams[1:].to(device, dtype), case_head, to_device(rows, device), noise)
