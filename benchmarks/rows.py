"""Rows of a benchmark: the paper's defaults in every one."""

from typing import Any

import torch
from torch import Tensor

from led_sglang.ops import LedRows

PROMISES = (
    "any_trace",
    "any_norm",
    "all_norm",
    "any_min_p",
    "mixed_top_k",
    "mixed_depth",
    "any_greedy",
    "any_normalize",
    "any_offset",
)


def paper_rows(
    num_rows: int, depth: int = 8, top_k: int = 8, device: str | torch.device = "cpu", **changes: Any
) -> LedRows:
    """All rows alike, and the host-known promises that hold for them; `changes` are fields of LedRows."""

    def column(value: float | bool) -> Tensor:
        return torch.full((num_rows,), value, device=device)

    fields = {
        "active": column(True),
        "depth": column(depth),
        "top_k": column(top_k),
        "temperature": column(0.6),
        "greedy": column(False),
        "exploit": column(True),
        "latent_norm": column(False),
        "normalize_layers": column(False),
        "latent_offset": column(0),
        "min_p": column(0.0),
        "full": column(False),
        "max_depth": depth,
        "max_top_k": top_k,
    }
    return LedRows(**{**fields, **dict.fromkeys(PROMISES, False), **changes})
