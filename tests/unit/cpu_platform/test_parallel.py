"""What ranks share on the CPU platform is what one rank has alone."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.moe.fused_moe_native import moe_forward_native
from sglang.srt.layers.moe.topk import StandardTopKOutput
from torch import Tensor

from led_sglang.cpu_platform.parallel import local_experts

HIDDEN, WIDTH, EXPERTS, TOP = 8, 6, 4, 2
# Of an installation by another test, the function that SGLang has.
STOCK = getattr(moe_forward_native, "__wrapped__", moe_forward_native)


class Act(torch.nn.Module):
    """SGLang's needs its runtime."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return torch.nn.functional.silu(gate) * up


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_the_ranks_experts_add_up(num_ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank has some, and says -1 of the others'; some rank has none that a token wants."""
    monkeypatch.setattr("sglang.srt.layers.moe.fused_moe_native.SiluAndMul", Act)
    torch.manual_seed(3)
    x = torch.randn(5, HIDDEN)
    w13, w2 = torch.randn(EXPERTS, 2 * WIDTH, HIDDEN), torch.randn(EXPERTS, HIDDEN, WIDTH)
    ids = torch.stack([torch.randperm(EXPERTS)[:TOP] for _ in range(5)]).int()
    weights = torch.rand(5, TOP)
    config = SimpleNamespace(apply_router_weight_on_input=False, activation="silu", gemm1_alpha=None)

    def output(own: slice, own_ids: Tensor, function: Any) -> Tensor:
        layer = SimpleNamespace(num_experts=EXPERTS, w13_weight=w13[own], w2_weight=w2[own])
        result: Tensor = function(layer, x, StandardTopKOutput(weights, own_ids, None), config)
        return result

    whole = output(slice(None), ids, STOCK)
    share = EXPERTS // num_ranks
    parts = []
    for first in range(0, EXPERTS, share):
        is_own = (ids >= first) & (ids < first + share)
        parts.append(output(slice(first, first + share), torch.where(is_own, ids - first, -1), local_experts(STOCK)))
    torch.testing.assert_close(sum(parts), whole)
