"""Inputs for the op tests: layers that disagree sharply, so that a wrong layer, order or norm cannot hide."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from led_sglang.ops import Backend, Head, LedRows, LedStep, LogitEdits, StepInputs, led_step
from led_sglang.ops.backends.torch import TorchBackend

CPU = torch.device("cpu")
# "triton" needs a GPU or the interpreter: kernels/test_triton.py
CPU_BACKENDS = ["reference", "eager", "torch", "numba"]
FIXED_SHAPES = TorchBackend(allows_dynamic_shapes=False)  # the path of a GPU, on a CPU
others = pytest.mark.parametrize("backend", [name for name in CPU_BACKENDS if name != "reference"])


# Eight rows with all that a row may ask for.
EVERY_SWITCH = {
    "greedy": torch.tensor([True, False] * 4),
    "exploit": torch.tensor([False, True] * 4),
    "latent_norm": torch.tensor([True, False] * 4),
    "latent_offset": torch.tensor([0, 1] * 4),
    "normalize_layers": torch.tensor([True, False] * 4),
    "min_p": torch.tensor([0.1, 0.0] * 4),
    "trace": torch.tensor([True, False] * 4),
    "depth": torch.tensor([8, 3] * 4),
    "top_k": torch.tensor([8, 2] * 4),
}


def rms_norm(hidden: Tensor) -> Tensor:
    scaled = hidden.float() * hidden.float().square().mean(-1, keepdim=True).add(1e-6).rsqrt()
    return (2.0 * scaled).to(hidden.dtype)


def make_rows(num_rows: int, depth: int | Tensor = 4, top_k: int | Tensor = 8, **changes: Any) -> LedRows:
    return LedRows.uniform(num_rows, depth, top_k, **changes)


def on_gpu(rows: LedRows) -> LedRows:
    """The same promises, fake columns."""
    columns = {name: value for name, value in vars(rows).items() if isinstance(value, Tensor)}
    return replace(
        rows, **{name: torch.empty(value.shape, dtype=value.dtype, device="cuda") for name, value in columns.items()}
    )


def make_inputs(coin_uniform: Tensor, token_uniform: Tensor, active: bool | Tensor = True) -> StepInputs:
    """active: of every row, or (R,)."""
    if not isinstance(active, Tensor):
        active = torch.full(coin_uniform.shape, active, device=coin_uniform.device)
    return StepInputs(active, coin_uniform, token_uniform)


@dataclass(frozen=True)
class Case:
    final_logits: Tensor
    latents: Tensor
    head: Head
    rows: LedRows
    inputs: StepInputs
    edits: LogitEdits | None = None

    def run(self, backend: str | Backend = "auto", **more: Any) -> LedStep:
        arguments = (self.final_logits, self.latents, self.head, self.rows, self.inputs)
        return led_step(*arguments, backend=backend, edits=self.edits, **more)

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
    active: bool | Tensor = True,
    **changes: Any,
) -> Case:
    """Each row has six likely tokens, which every layer ranks differently. `explore` forces every coin.

    A large vocabulary needs a large `hidden`: the other tokens' logits have a spread of 22 / sqrt(hidden).
    """
    rng = torch.Generator().manual_seed(seed)
    rows = make_rows(num_rows, depth, top_k, device=device, **changes)
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
    inputs = make_inputs(coin_uniform.to(device), token.to(device), active)
    return Case(final_logits, streams[1:].to(device, dtype), case_head, rows, inputs)


MIXED = {
    "depth": torch.tensor([1, 2, 4, 4, 3] * 4),
    "exploit": torch.tensor([True, True, False, True] * 5),
    "greedy": torch.tensor([False, False, True, False, False] * 4),
    "trace": torch.tensor([False, True, False, False] * 5),
    "active": torch.tensor([True, True, True, True, False] * 4),
    "latent_norm": torch.tensor([False] * 18 + [True] * 2),
    "latent_offset": torch.tensor([1] + [0] * 19),
}
