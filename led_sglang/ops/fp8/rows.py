"""The LM head's rows in eight bits, for the log-sum-exp of latent rows alone: half of the bytes that a pass reads.

Of what the method takes from a latent row the log-sum-exp is a sum over the whole vocabulary, in which the roundings of
single logits average out; the logits of the k candidates are taken from the weight itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FORMAT = torch.float8_e4m3fn
LARGEST = 448.0  # of FORMAT
CHUNK = 4096  # rows of the head that are widened at once


@dataclass(frozen=True)
class Fp8Rows:
    """Row v of the weight is all but codes[v] * scale[v]."""

    codes: Tensor  # (V_shard, H) float8_e4m3fn, contiguous
    scale: Tensor  # (V_shard,) float32, powers of two: a decoded row is exact in bfloat16

    @classmethod
    def of(cls, weight: Tensor) -> "Fp8Rows":
        """Of a (V_shard, H) weight of at least 16 bits, on its device."""
        codes = torch.empty(weight.shape, dtype=FORMAT, device=weight.device)
        copy = cls(codes, torch.empty(len(weight), device=weight.device))
        copy.refresh(weight)
        return copy

    def refresh(self, weight: Tensor) -> None:
        """Follow a weight that has changed, in place: CUDA graphs hold the addresses."""
        for start in range(0, len(weight), CHUNK):
            rows = weight[start : start + CHUNK].float()
            _, exponent = torch.frexp(rows.abs().amax(1) / LARGEST)  # the largest entry takes 224 to 448
            scale = torch.ldexp(torch.ones_like(rows[:, 0]), exponent)
            self.scale[start : start + CHUNK] = scale
            self.codes[start : start + CHUNK] = (rows / scale[:, None]).to(FORMAT)

    def decoded(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """(stop - start, H) of the dtype."""
        return self.codes[start:stop].to(dtype).mul_(self.scale[start:stop, None].to(dtype))

    def first(self, num_rows: int) -> "Fp8Rows":
        return Fp8Rows(self.codes[:num_rows], self.scale[:num_rows])

    @property
    def num_bytes(self) -> int:
        return self.codes.numel() + self.scale.numel() * self.scale.element_size()
