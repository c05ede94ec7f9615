"""Inputs of the kit: layers that agree on a row's likely tokens and disagree on their order, and coins of two kinds.

Which rows go through the head in one pass is decided by a uniform, as in production; which rows explore is forced apart
from it, since random weights have no confidence to speak of. Shape letters: `B` rows of the batch, `R` of them LED's,
`J` latent layers.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from led_sglang.ops import Backend, Head, KnownLse, LedRows, LedStep, StepInputs, backend_for, led_step
from led_sglang.ops.backends import one_pass
from led_sglang.ops.backends.torch import TorchBackend

EXPLORES, EXPLOITS = -1.0, 1.0  # coins that do so whatever the confidence


@dataclass(frozen=True)
class Case:
    hidden: Tensor  # (B, H), what the engine's head multiplies
    batch_logits: Tensor  # (B, V)
    batch_latents: Tensor  # (J, B, H)
    head: Head
    rows: LedRows  # R
    inputs: StepInputs  # R
    uniform: Tensor  # (R,) float64, what chooses the one-pass rows
    index: Tensor | None = None  # (R,) int64 rows of the batch; None: R = B

    @property
    def final_logits(self) -> Tensor:
        return self.batch_logits if self.index is None else self.batch_logits.index_select(0, self.index)

    @property
    def latents(self) -> Tensor:
        return self.batch_latents if self.index is None else self.batch_latents.index_select(1, self.index)

    @property
    def mask_inputs(self) -> StepInputs:
        """What chooses the one-pass rows."""
        return replace(self.inputs, coin_uniform=self.uniform)

    def step(self, backend: str, known_lse: KnownLse | None = None) -> LedStep:
        arguments = self.final_logits, self.latents, self.head, self.rows, self.inputs
        return led_step(*arguments, backend=gpu_backend(backend, self.hidden.device), known_lse=known_lse)

    def two_pass(self, backend: str) -> LedStep:
        """The coin first, then the rows that explore."""
        return self.step(backend)

    def one_pass(self, backend: str) -> LedStep:
        """The head's own product included, which the other form is given."""
        num_rows, device = len(self.hidden), self.hidden.device
        chosen = gpu_backend(backend, device)
        mask = torch.zeros(num_rows, dtype=torch.bool, device=device)
        tau, lse = torch.ones(num_rows, device=device), torch.zeros(self.batch_latents.shape[:2], device=device)
        chosen.one_pass_mask(self.rows, self.mask_inputs, self.index, mask, tau)
        chosen.head_pass(self.hidden, self.batch_latents, self.head, tau, mask, lse)
        if self.index is not None:
            lse, mask = lse.index_select(1, self.index), mask.index_select(0, self.index)
        return self.step(backend, one_pass.known_lse_of(self.rows, lse, mask, chosen.coin_threshold))

    def product(self) -> Tensor:
        """The engine's head product alone."""
        return self.hidden @ self.head.weight.T

    def one_pass_rows(self) -> int:
        """How many rows go through the head with the final ones."""
        return int(one_pass.one_pass_mask(self.rows, self.mask_inputs, one_pass.COIN_THRESHOLD).sum())

    def with_head(self, **changes: Any) -> "Case":
        return replace(self, head=replace(self.head, **changes))

    def with_coins(self, num_exploring: int, seed: int = 0, keeps_mask: bool = True) -> "Case":
        """So many rows explore; see `spread_coins`."""
        num_rows, device = len(self.uniform), self.uniform.device
        coin_uniform, uniform = spread_coins(num_rows, num_exploring, seed, keeps_mask)
        inputs = replace(self.inputs, coin_uniform=coin_uniform.to(device))
        return replace(self, inputs=inputs, uniform=uniform.to(device))


def spread_coins(num_rows: int, num_exploring: int, seed: int = 0, keeps_mask: bool = True) -> tuple[Tensor, Tensor]:
    """(R,) float64 each: coins that explore in so many rows, and uniforms evenly spread over [0, 1).

    Which rows explore does not depend on the uniform. With `keeps_mask` the uniform of a row that explores lies below
    every cut, as it does in production but for rows of very low confidence; without it every other one of them lies
    above the cut, and is left to a second pass. Raises ValueError for more exploring rows than rows.
    """
    if not 0 <= num_exploring <= num_rows:
        raise ValueError(f"{num_exploring} exploring rows of {num_rows}")
    generator = torch.Generator().manual_seed(seed)
    uniform = (torch.randperm(num_rows, generator=generator).double() + 0.5) / max(num_rows, 1)
    exploring = torch.randperm(num_rows, generator=generator)[:num_exploring]
    coin_uniform = torch.full((num_rows,), EXPLOITS, dtype=torch.float64)
    coin_uniform[exploring] = EXPLORES
    uniform[exploring] = 0.0
    if not keeps_mask:
        uniform[exploring[::2]] = 0.5 + one_pass.COIN_THRESHOLD / 2
    return coin_uniform, uniform


def make_head(vocab: int, hidden: int, dtype: torch.dtype, device: torch.device) -> Head:
    """Random directions of length about one."""
    torch.manual_seed(0)
    weight = torch.empty(vocab, hidden, device=device, dtype=dtype)
    for part in weight.split(1 << 14):  # by parts: no float32 copy of the whole
        part.copy_(torch.randn(part.shape, device=device) / hidden**0.5)
    return Head(weight, vocab)


def make_case(head: Head, num_rows: int, depth: int, num_exploring: int, /, **rows: Any) -> Case:
    """`rows`: fields of LedRows that are not the paper's, and `active`; depth: layers, the final one included."""
    weight, device = head.weight, head.weight.device
    torch.manual_seed(num_rows)
    favourites = torch.randint(head.num_rows, (num_rows, 6), device=device)
    strength = torch.randn(depth, num_rows, 6, device=device).mul_(2).add_(9)
    streams = torch.einsum("lrf,rfh->lrh", strength, weight[favourites].float()).to(weight.dtype)
    # In float32: rounded to bfloat16 many logits would be equal, and which of them are candidates a matter of taste.
    logits = torch.cat([streams[0].float() @ part.float().T for part in weight.split(1 << 14)], 1)
    token = torch.rand(num_rows, generator=torch.Generator().manual_seed(num_rows), dtype=torch.float64).to(device)
    active = rows.pop("active", torch.ones_like(token, dtype=torch.bool))
    some, inputs = LedRows.uniform(num_rows, depth, device=device), StepInputs(active, torch.zeros_like(token), token)
    case = Case(streams[0], logits, streams[1:].contiguous(), head, replace(some, **rows), inputs, inputs.coin_uniform)
    return case.with_coins(num_exploring)


def gpu_backend(name: str, device: torch.device) -> Backend:
    """As on a GPU, with fixed shapes, on a CPU too: what a dry run is to prove."""
    if name == "triton":
        from led_sglang.ops.backends.triton import TritonBackend

        return TritonBackend()
    return TorchBackend(allows_dynamic_shapes=False) if name in ("torch", "fused") else backend_for(name, device)
