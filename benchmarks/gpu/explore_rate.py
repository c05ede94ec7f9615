"""An SGLang plugin of the benchmarks: a share of LED's rows explores, whatever the model's confidence.

With random weights the confidence says nothing of a real model's. The tokens are wrong, so this is no part of the
product: `environment` gives a server that loads it beside LED.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RATE = "LED_BENCH_EXPLORE_RATE"
STEP = "led_sglang.integration.scheduler."
_uniforms: dict[int, Tensor] = {}  # of the inputs that were made last, by their identity


def environment(folder: Path, rate: float) -> dict[str, str]:
    """Of a server that loads the plugin: a distribution with the entry point, found on PYTHONPATH."""
    info = folder / "led_bench-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: led-bench\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[sglang.srt.plugins]\nled_bench = {__name__}:register\n")
    paths = [str(folder), str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), RATE: str(rate)}


def register() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(STEP + "runtime.Runtime.row_inputs", toss, HookType.AFTER)
    HookRegistry.register(STEP + "latents.one_pass.OnePassState.fill_mask", keep_uniform, HookType.BEFORE)


def toss(result: Any, *args: Any) -> Any:
    """AFTER Runtime.row_inputs: coins that are 0 or 1 instead of the model's confidence."""
    coin_uniform, one_pass_uniform = bench_coins(result.coin_uniform, float(os.environ[RATE]))
    changed = replace(result, coin_uniform=coin_uniform)
    _uniforms.clear()
    _uniforms[id(changed)] = one_pass_uniform
    return changed


def keep_uniform(self: Any, rows: Any, inputs: Any, num_rows: int) -> Any:
    """BEFORE OnePassState.fill_mask: the share of rows in the one pass is that of production."""
    return (self, rows, replace(inputs, coin_uniform=_uniforms[id(inputs)]), num_rows), {}


def bench_coins(uniform: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Coins that explore in a share `rate` of the rows whatever the model's confidence.

    (R,) float64 in [0, 1) -> (coin_uniform, one_pass_uniform), (R,) float64 each: -1 always explores, 1 never does; the
    second keeps the uniform, and lies below every threshold where the row explores: threshold + (1 - threshold) * rate
    of them are one-pass. The low 33 of the uniform's 53 bits are the second stream: a handful of launches, not forty.
    """
    explores = uniform.mul(2.0**20).frac_() < rate
    return torch.ones_like(uniform).masked_fill_(explores, -1.0), uniform.masked_fill(explores, -1.0)
