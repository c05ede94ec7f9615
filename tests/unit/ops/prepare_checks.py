"""Run by test_warm_up.py in a process of its own: on a CPU all that requests reach is compiled at model load."""

from typing import Any

import pytest
import torch

from led_sglang.ops import LogitEdits, RowMeta, ThinkingAutomaton, backend_for, led_step, uniforms
from led_sglang.ops.backends import step_loops
from led_sglang.ops.rows import draw_loops, numba_loops
from led_sglang.ops.types import Counters, Filters
from tests.unit.ops.cases.op_cases import CPU, make_case

BACKEND = backend_for("auto", CPU)
BACKEND.prepare()
CASES: dict[str, dict[str, Any]] = {
    "explores": {"explore": True},
    "exploits": {"explore": False},
    "traced": {"trace": torch.arange(5) == 0},
    "mixed": {"greedy": torch.arange(5) == 1, "top_k": torch.arange(5) + 1, "min_p": 0.1, "normalize_layers": True},
    "several tiles": {"vocab": 32001, "hidden": 16, "explore": True},
    "half precision": {"dtype": torch.bfloat16, "explore": True},
    "depth 1": {"depth": 1},
}


def signatures() -> dict[str, list[Any]]:
    """Of every loop that is called from Python."""
    return {
        f"{module.__name__}.{name}": list(value.signatures)
        for module in (step_loops, draw_loops, numba_loops)
        for name, value in vars(module).items()
        if not name.startswith("_") and hasattr(value, "signatures")
    }


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("is_extend", [False, True])
def check_a_request_compiles_nothing(name: str, is_extend: bool) -> None:
    before = signatures()
    assert all(before.values()), [name for name, known in before.items() if not known]
    case = make_case(5, **CASES[name])
    number, flag = torch.arange(5), torch.arange(5) % 2 == 0
    tables, states = ThinkingAutomaton([1], [2], 97).tables("cpu"), torch.zeros(9, dtype=torch.int64)
    for index, is_led, dtype in ((None, None, torch.int32), (number + 1, flag, torch.int64)):
        meta = RowMeta(index, number, number, number, number, flag, is_led, True)
        batch = torch.arange(7)
        inputs = BACKEND.row_inputs(meta, batch, batch, batch if is_extend else None, states)
        edits = LogitEdits(torch.zeros(5, case.final_logits.shape[1]), None, None, edited=number[:2])
        for given in ({}, {"edits": edits}, {"draws_inactive": True}):
            latents = case.latents
            arguments = case.final_logits, lambda latents=latents: latents, case.head, case.rows, inputs
            step = led_step(*arguments, backend=BACKEND, **given)  # type: ignore[arg-type]
        token_ids = torch.zeros(7, dtype=dtype)
        BACKEND.write_tokens(meta, token_ids, inputs, step)
        BACKEND.advance(meta, tables, states, inputs, token_ids)
        for decided in (step, None):
            BACKEND.count(inputs, decided, False, number * 0, Counters.zeros(8, 1, CPU))
        column = torch.ones(7)
        filters = Filters(column.int(), column, column * 0)
        BACKEND.sample_filtered(torch.rand(7, 11)[:, :9], number, flag, inputs.token_uniform, filters)
    uniforms(number, number, number, 5)
    assert signatures() == before
