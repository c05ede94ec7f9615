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
        self._numbers = [0] * len(NUMBERS)

    def update(self, numbers: Tensor) -> None:
        """What came with a step's tokens: NUMBERS of the last stage since its start, int64."""
        self._numbers = numbers.tolist()

    def status(self) -> dict[str, Any]:
        failures, engine_steps, *steps = self._numbers
        last = self.last_stage
        return {
            **last,
            "counters": self.counts.status(),
            "step_failures": self.num_step_failures + failures,
            "form": {**last["form"], "steps": dict(zip(last["form"]["steps"], steps, strict=True))},
            "head": {**last["head"], "engine_steps": engine_steps},
        }
