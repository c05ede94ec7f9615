"""Rows, filters and uniforms of the plain draw, and what exact arithmetic over a sorted vocabulary makes of them."""

from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from led_sglang.ops import backend_for
from led_sglang.ops.rows.filtered_draw import kept_tokens
from led_sglang.ops.types import Filters, Support

TOP_K = (1, 2, 5, 40, 1 << 30)
TOP_P = (0.05, 0.5, 0.9, 1.0)
MIN_P = (0.0, 0.02, 0.5, 1.0)


@dataclass(frozen=True)
class Draw:
    probs: Tensor  # (B, V)
    rows: Tensor  # (S,)
    skip: Tensor  # (S,) bool
    uniform: Tensor  # (S,)
    filters: Filters

    def run(self, backend: str) -> tuple[Tensor, Support]:
        chosen = backend_for(backend, self.probs.device)
        return chosen.sample_filtered(self.probs, self.rows, self.skip, self.uniform, self.filters)

    def take(self, index: list[int]) -> "Draw":
        """Some of its rows, in a batch that holds no others."""
        rows = self.rows[index]
        filters = Filters(*(column[rows] for column in (self.filters.top_k, self.filters.top_p, self.filters.min_p)))
        return Draw(self.probs[rows], torch.arange(len(index)), self.skip[index], self.uniform[index], filters)

    def policies(self, coin_threshold: Support) -> list[dict[int, float]]:
        """What `coin_threshold` leaves of each row: id -> probability."""
        ids, weights = kept_tokens(self.probs, self.rows, coin_threshold, self.probs.shape[1])
        assert (weights[:, 1:] <= weights[:, :-1]).all()
        return [
            {v: p for v, p in zip(*pair, strict=True) if p > 0}
            for pair in zip(ids.tolist(), weights.tolist(), strict=True)
        ]


def every_filter(vocab: int, seed: int, has_ties: bool = False) -> Draw:
    """A row for each combination, in no order; the last row of the batch is nobody's."""
    mask = [(k, p, m) for k in TOP_K for p in TOP_P for m in MIN_P]
    generator = torch.Generator().manual_seed(seed)
    probs = (2.5 * torch.randn(len(mask) + 1, vocab, generator=generator)).softmax(-1)
    if has_ties:
        probs = (probs * 64).round() / 64
    top_k, top_p, min_p = (torch.tensor([*column, column[0]]) for column in zip(*mask, strict=True))
    rows, uniform = torch.randperm(len(mask), generator=generator), torch.rand(len(mask), generator=generator)
    return Draw(probs, rows, rows < 0, uniform.double(), Filters(top_k.int(), top_p, min_p))


def skipping(draw: Draw) -> Draw:
    return replace(draw, skip=draw.rows % 3 == 0)


def sorted_policy(probs: Tensor, top_k: int, top_p: float, min_p: float) -> dict[int, float]:
    """What is left of a row (V,), in exact arithmetic. Of equal probabilities the smaller id is first."""
    values = probs.tolist()
    order = sorted(range(len(values)), key=lambda v: (-values[v], v))
    least, before, kept = float(probs.max() * min_p), Fraction(0), {}
    for rank, v in enumerate(order):
        if rank >= top_k or (before > Fraction(top_p) and top_p < 1) or values[v] < least:
            break
        before += Fraction(values[v])
        kept[v] = values[v]
    return {v: p for v, p in kept.items() if p > 0}


def token_at(policy: dict[int, float], uniform: float) -> int:
    """The first id at which the cumulated probability exceeds the uniform's share of it."""
    total, cumulated = sum(map(Fraction, policy.values())), Fraction(0)
    for v in sorted(policy):
        cumulated += Fraction(policy[v])
        if cumulated > Fraction(uniform) * total:
            return v
    raise AssertionError(uniform)
