"""A pipeline stage before the last: it samples nothing. The first one counts and reports what the last has decided."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from led_sglang.config.server import ServerConfig
from led_sglang.integration.scheduler.stage import Stage

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner


NUMBERS = ("step_failures", "engine_steps", "one_pass", "coin_first")  # of the last stage, with every step


class EarlierStage(Stage):
    """Its status is the last stage's: as it was at the start, with the numbers that came with its tokens."""

    def __init__(self, config: ServerConfig, runner: "ModelRunner") -> None:
        super().__init__(config, runner, torch.device("cpu"))
        self.last_stage: dict[str, Any] = {}  # its status
        self._numbers = torch.zeros(len(NUMBERS), dtype=torch.int64)

    def update(self, numbers: Tensor) -> None:
        """NUMBERS of the last stage since its start, int64, which came with a step's tokens and are on their way."""
        self._numbers = numbers

    def status(self) -> dict[str, Any]:
        device = torch.device(self.runner.device)
        if device.type != "cpu":
            torch.get_device_module(device).synchronize(device)
        failures, engine_steps, *steps = self._numbers.tolist()
        last = self.last_stage
        return {
            **last,
            "counters": self.counts.status(),
            "step_failures": self.num_step_failures + failures,
            "form": {**last["form"], "steps": dict(zip(last["form"]["steps"], steps, strict=True))},
            "head": {**last["head"], "engine_steps": engine_steps},
        }
