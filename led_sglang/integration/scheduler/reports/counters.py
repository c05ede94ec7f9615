"""How many tokens of each kind a scheduler process has handed out: counted on the device, read for a report."""

from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

import numpy as np
import torch

from led_sglang.config.methods import METHODS
from led_sglang.ops.rows import stats
from led_sglang.ops.types import Counters

ENGINE = METHODS.index("none")


class Counts:
    """The device's counters, and what only the host knows: steps that failed early, unclaimed results."""

    def __init__(self, max_depth: int, device: torch.device) -> None:
        self.on_device = Counters.zeros(max_depth, len(METHODS), device)
        self.num_unresolved = 0  # requests that `intake` has refused
        self.pending: WeakSet[Any] = WeakSet()  # StepRecords that are counted and not handed out yet
        self._corrections = np.zeros(len(self.on_device.values), np.int64)

    def correct(self, flags: Iterable[int], methods: Iterable[int], weight: int) -> None:
        """Count rows `weight` times more than the device did; methods: indices of METHODS."""
        stats.count(list(flags), list(methods), weight, self._corrections, self.on_device.method_offset)

    def add_engine_tokens(self, num_tokens: int) -> None:
        """Of a request that asked for plain sampling: no kernel of ours has seen them."""
        self._corrections[self.on_device.method_offset + ENGINE] += num_tokens

    def status(self) -> dict[str, Any]:
        """Names and numbers; of the steps whose results have been handed out."""
        device = self.on_device.values.device
        if device.type != "cpu":
            torch.get_device_module(device).synchronize(device)
        counts = self.on_device.values.cpu().numpy() + self._corrections
        for record in self.pending:
            flags, methods = record.unreported()
            stats.count(flags, methods, -1, counts, self.on_device.method_offset)
        counted = stats.to_dict(counts, self.on_device.method_offset, METHODS)
        return {**counted, "unresolved_requests": self.num_unresolved}
