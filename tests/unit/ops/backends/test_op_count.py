"""What a step costs: on a small model on CPU the number of torch calls, on a large one the memory it touches."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from led_sglang.ops import uniforms
from tests.unit.ops.cases.op_cases import make_case

VIEWS = {
    "lift_fresh",
    "view",
    "unsqueeze",
    "squeeze",
    "slice",
    "select",
    "expand",
    "permute",
    "t",
    "detach",
    "alias",
    "unbind",
}


class Recorder(TorchDispatchMode):
    """Counts calls that compute, and the largest tensor any call returned."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.calls.append(name)
            outputs = result if isinstance(result, tuple | list) else (result,)
            self.largest = max([self.largest, *(out.numel() for out in outputs if isinstance(out, torch.Tensor))])
        return result


def record(run: Any) -> Recorder:
    with Recorder() as recorder:
        run()
    return recorder


@pytest.mark.parametrize(
    ("backend", "explore", "limit"),
    [("torch", False, 19), ("torch", True, 40), ("numba", False, 2), ("numba", True, 6)],
)
def test_number_of_calls(backend, explore, limit):
    case = make_case(1, 512, hidden=128, depth=8, explore=explore)
    calls = record(lambda: case.run(backend)).calls
    assert len(calls) <= limit, calls


def test_noise_is_cheap():
    column = torch.zeros(1, dtype=torch.int64)
    assert len(record(lambda: uniforms(column, column, column)).calls) <= 35


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_latent_logits_are_never_whole(backend):
    case = make_case(24, 32001, depth=8, explore=True, hidden=16)
    assert record(lambda: case.run(backend)).largest < 2 * 24 * 32001
    assert record(lambda: case.run("eager")).largest >= 7 * 24 * 32001


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_rows_that_exploit_cost_no_latent_work(backend):
    case = make_case(8, 97, explore=False)
    assert not {"mm", "addmm", "bmm", "linear"} & set(record(lambda: case.run(backend)).calls)
