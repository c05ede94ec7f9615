"""Cases of the other decoding methods, with their float64 references."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from led_sglang.config.fields import SELECT_METHODS
from led_sglang.ops import Head
from led_sglang.ops.methods.confident import confident_logits
from led_sglang.ops.methods.dola import dola_logits
from led_sglang.ops.methods.reference import confident_row, dola_row, sled_row
from led_sglang.ops.methods.sled import sled_logits
from led_sglang.ops.methods.soft_thinking import SoftStep, soft_mixture
from tests.unit.ops.cases.op_cases import make_case


@dataclass(frozen=True)
class Dola:
    final_logits: Tensor
    early: Tensor
    candidates: Tensor
    relative_top: Tensor
    head: Head

    def run(self) -> tuple[Tensor, Tensor]:
        return dola_logits(self.final_logits, self.early, self.candidates, self.relative_top, self.head)

    def reference(self) -> tuple[Tensor, Tensor]:
        rows = [
            dola_row(
                self.final_logits[r].tolist(),
                list(self.early[:, r]),
                self.candidates[r].tolist(),
                self.relative_top[r].item(),
                self.head,
            )
            for r in range(len(self.final_logits))
        ]
        return torch.tensor([logits for logits, _ in rows]), torch.tensor([chosen for _, chosen in rows])


def random_dola(num_rows: int = 17, num_layers: int = 5, vocab: int = 97, head: Any = None, **changes: Any) -> Dola:
    case = make_case(num_rows, vocab, layers=num_layers, **changes).with_head(**head or {})
    rng = torch.Generator().manual_seed(1)
    candidates = torch.rand(num_rows, num_layers, generator=rng) < 0.7
    candidates[:, 0] |= ~candidates.any(1)
    relative_top = torch.tensor([0.1, 0.0, 1.0, 0.5]).repeat(num_rows)[:num_rows]
    return Dola(case.final_logits, case.latents, candidates, relative_top, case.head)


def assert_agree(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], atol: float = 2e-5) -> None:
    assert actual[1].tolist() == expected[1].tolist()
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=atol, equal_nan=True)


@dataclass(frozen=True)
class Confident:
    final_logits: Tensor
    latents: Tensor
    num_layers: Tensor
    head: Head
    select_methods: tuple[str, ...] = ()  # of each row; empty: none is given
    keeps_final: Tensor | None = None

    def run(self) -> tuple[Tensor, Tensor]:
        selection = torch.tensor([SELECT_METHODS.index(name) for name in self.select_methods], dtype=torch.int64)
        return confident_logits(
            self.final_logits,
            self.latents,
            self.num_layers,
            self.head,
            selection=selection.to(self.latents.device) if self.select_methods else None,
            keeps_final=self.keeps_final,
        )

    def reference(self) -> tuple[Tensor, Tensor]:
        rows = [
            confident_row(
                self.final_logits[r].tolist(),
                list(self.latents[:, r]),
                int(self.num_layers[r]),
                self.head,
                select_method=self.select_methods[r] if self.select_methods else "trough",
                keeps_final=self.keeps_final is not None and bool(self.keeps_final[r]),
            )
            for r in range(len(self.final_logits))
        ]
        return torch.tensor([logits for logits, _ in rows]), torch.tensor([chosen for _, chosen in rows])


def random_confident(num_rows: int = 17, num_layers: int = 6, head: Any = None, **changes: Any) -> Confident:
    """Rows scan 2 to `num_layers` layers; streams of random strength, so that valleys lie anywhere."""
    case = make_case(num_rows, layers=num_layers - 1, **changes).with_head(**head or {})
    rng = torch.Generator().manual_seed(1)
    noise = torch.randn(case.latents.shape, generator=rng) * torch.rand(num_layers - 1, num_rows, 1, generator=rng) * 3
    scanned = torch.randint(2, num_layers + 1, (num_rows,), generator=rng)
    final = case.final_logits * torch.rand(num_rows, 1, generator=rng)
    return Confident(final, case.latents + noise.to(case.latents.dtype), scanned, case.head)


MAX_SCALE = 40


@dataclass(frozen=True)
class Sled:
    final_logits: Tensor
    early: Tensor
    rate: Tensor
    scale: Tensor
    head: Head

    def run(self) -> tuple[Tensor, Tensor]:
        return sled_logits(self.final_logits, self.early, self.rate, self.scale, self.head, MAX_SCALE)

    def reference(self) -> tuple[Tensor, Tensor]:
        rows = [
            sled_row(
                self.final_logits[r].tolist(),
                list(self.early[:, r]),
                self.rate[r].item(),
                int(self.scale[r]),
                self.head,
            )
            for r in range(len(self.final_logits))
        ]
        return torch.tensor([logits for logits, _ in rows]), torch.tensor([is_evolved for _, is_evolved in rows])


def random_sled(num_rows: int = 17, num_layers: int = 5, head: Any = None, **changes: Any) -> Sled:
    case = make_case(num_rows, layers=num_layers, **changes).with_head(**head or {})
    rate = torch.tensor([2.0, 10.0, 0.5, 0.0, 3.0]).repeat(num_rows)[:num_rows]
    scale = torch.tensor([10, 1, MAX_SCALE, 3]).repeat(num_rows)[:num_rows]
    return Sled(case.final_logits, case.latents, rate, scale, case.head)


def columns(num_rows: int, temperature: Any, greedy: Any, max_topk: Any, gumbel: Any) -> tuple[Tensor, ...]:
    values = (temperature, torch.float32), (greedy, torch.bool), (max_topk, torch.int64), (gumbel, torch.float32)
    return tuple(torch.as_tensor(value, dtype=dtype).expand(num_rows) for value, dtype in values)


def mix(
    logits: Tensor,
    temperature: Any = 1.0,
    greedy: Any = False,
    max_topk: Any = 2,
    gumbel: Any = 0.0,
    noise: Tensor | None = None,
    max_k: int = 3,
) -> SoftStep:
    return soft_mixture(logits, *columns(len(logits), temperature, greedy, max_topk, gumbel), noise, max_k)
