"""Inputs of the kit: layers that agree on a row's likely tokens and disagree on their order."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.rows import paper_rows
from led_sglang.ops import Head, LedRows, LedStep, Noise, led_step
from led_sglang.ops.backends import one_pass


@dataclass(frozen=True)
class Case:
    hidden: Tensor  # (B, H), what the engine's head multiplies
    final_logits: Tensor
    latents: Tensor
    head: Head
    rows: LedRows
    noise: Noise

    def coin_first(self, backend: str) -> LedStep:
        return led_step(self.final_logits, self.latents, self.head, self.rows, self.noise, backend=backend)

    def one_pass(self, backend: str) -> LedStep:
        """The head's own product included, which every other form is given."""
        cut = one_pass.cut_of(backend, self.hidden.device)
        wanted = one_pass.wanted_rows(self.rows, self.noise.coin, cut)
        normalizers = torch.zeros(self.latents.shape[:2], device=self.hidden.device)
        tau = one_pass.row_tau(self.rows)
        one_pass.head_pass(self.hidden, self.latents, self.head, tau, wanted, normalizers, backend)
        ridden = one_pass.ridden_of(self.rows, normalizers, wanted, cut)
        arguments = (self.final_logits, self.latents, self.head, self.rows, self.noise)
        return led_step(*arguments, backend=backend, ridden=ridden)

    def with_head(self, **changes: object) -> "Case":
        return replace(self, head=replace(self.head, **changes))


def make(
    num_rows: int, vocab: int, hidden: int, depth: int, explore_rate: float, dtype: torch.dtype, device: torch.device
) -> Case:
    torch.manual_seed(num_rows)
    weight = torch.empty(vocab, hidden, device=device, dtype=dtype)
    for part in weight.split(1 << 14):
        part.copy_(torch.randn(part.shape, device=device) / hidden**0.5)
    favourites = torch.randint(vocab, (num_rows, 6), device=device)
    strength = torch.randn(depth, num_rows, 6, device=device).mul_(2).add_(9)
    streams = torch.einsum("lrf,rfh->lrh", strength, weight[favourites].float()).to(dtype)
    coin = torch.ones(num_rows, device=device, dtype=torch.float64)
    coin[torch.randperm(num_rows, device=device)[: round(explore_rate * num_rows)]] = 0.0
    noise = Noise(coin, torch.rand(num_rows, device=device, dtype=torch.float64))
    final_logits = (streams[0] @ weight.T).float()
    head, same_rows = Head(weight, vocab), paper_rows(num_rows, depth, device=device)
    return Case(streams[0], final_logits, streams[1:].contiguous(), head, same_rows, noise)
