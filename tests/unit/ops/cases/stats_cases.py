"""Rows of a step with every kind among them, for the tests of `led_sglang.ops.rows.stats`."""

from typing import Any

import torch

from led_sglang.ops import backend_for
from led_sglang.ops.constants import NOT_COUNTED
from led_sglang.ops.types import Counters, LedStep, RowInputs
from led_sglang.wire import CONFIDENCE_BOUNDS

MAX_DEPTH, NUM_METHODS = 5, 3


def draw(seed: int, num_rows: int, is_decided: bool, has_failed: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def numbers(top: int) -> torch.Tensor:
        return torch.randint(0, top, (num_rows,), generator=generator)

    # Confidences on the bounds themselves, and between them.
    bounds = torch.tensor(CONFIDENCE_BOUNDS)[numbers(len(CONFIDENCE_BOUNDS))]
    between = torch.rand(num_rows, generator=generator)
    return {
        "thinking": numbers(2).bool(),
        # LED decides whenever a row is in its phase, unless it fails.
        "active": numbers(2).bool() & (is_decided or has_failed),
        "explored": numbers(2).bool(),
        "ok": numbers(4) > 0,
        "depth": numbers(MAX_DEPTH) + 1,
        "confidence": torch.where(numbers(2).bool(), bounds, between),
        "method": numbers(NUM_METHODS),
        "is_decided": is_decided,
        "has_failed": has_failed and not is_decided,
    }


def count(
    case: dict[str, Any], backend: str, counters: Counters | None = None, kept: torch.Tensor | None = None
) -> tuple[torch.Tensor, Counters]:
    counters = counters or Counters.zeros(MAX_DEPTH, NUM_METHODS, torch.device("cpu"))
    row, none = torch.empty(0), torch.empty(0)
    inputs = RowInputs(case["active"], row, row, row, row, case["thinking"], row)
    step = LedStep(none, case["ok"], case["explored"], case["depth"], case["confidence"], None, none, none, none, None)
    decided = step if case["is_decided"] else None
    chosen = backend_for(backend, torch.device("cpu"))
    method = case["method"] if kept is None else case["method"].where(kept, NOT_COUNTED)
    return chosen.count(inputs, decided, case["has_failed"], method, counters), counters


def some_rows(case: dict[str, Any], kept: torch.Tensor) -> dict[str, Any]:
    return {key: value[kept] if isinstance(value, torch.Tensor) else value for key, value in case.items()}


def compare_counted(backend: str, seed: int, is_decided: bool) -> None:
    """Rows that are not counted have their flags and leave no other trace."""
    case = draw(seed, 23, is_decided, has_failed=True)
    kept = torch.rand(23, generator=torch.Generator().manual_seed(seed)) < 0.5
    (flags, counters), (all_flags, _) = count(case, backend, kept=kept), count(case, backend)
    part_flags, part = count(some_rows(case, kept), backend)
    assert torch.equal(flags, all_flags) and torch.equal(flags[kept], part_flags)
    assert torch.equal(counters.values, part.values)
