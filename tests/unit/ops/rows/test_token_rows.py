"""A request may own several token rows in a step: they are decided as one step after another would have."""

import pytest
import torch

from led_sglang.ops import LedRows, RowMeta, backend_for
from led_sglang.ops.backends.torch import TorchBackend
from tests.unit.ops.cases import token_rows
from tests.unit.ops.cases.op_cases import CPU, CPU_BACKENDS

# "triton": kernels/step_checks.py
BACKENDS = [*(backend_for(name, CPU) for name in CPU_BACKENDS), TorchBackend(allows_dynamic_shapes=False)]


@pytest.mark.parametrize("backend", BACKENDS, ids=[*CPU_BACKENDS, "torch with fixed shapes"])
def test_a_chain_in_one_step_is_that_of_many_steps(backend):
    token_rows.compare(backend)


def test_columns_are_those_of_the_requests():
    rows = LedRows.uniform(3, depth=torch.tensor([2, 4, 1]), top_k=5, trace=torch.tensor([True, False, False]))
    taken = rows.take(torch.tensor([1, 1, 0]))
    assert taken.depth.tolist() == [4, 4, 2] and taken.trace.tolist() == [False, False, True]
    assert (taken.max_depth, taken.max_top_k, taken.any_trace, taken.mixed_depth) == (4, 5, True, True)
    number, flag = torch.arange(3), torch.tensor([True, False, False])
    meta = RowMeta(number + 4, number, number, number, number, flag, ~flag, True)
    taken_meta = meta.take(torch.tensor([2, 0]), index=torch.tensor([7, 9]))
    assert taken_meta.seed.tolist() == [2, 0] and taken_meta.in_batch.tolist() == [7, 9]
    assert taken_meta.is_led is not None and taken_meta.is_led.tolist() == [True, False]

    class More(RowMeta):
        """As a caller's own rows, of which the other columns are not those of the token rows."""

    assert type(More(**vars(meta)).take(torch.tensor([0]))) is RowMeta
    assert meta.take(torch.tensor([2, 0])).in_batch.tolist() == [0, 1], "all token rows of the batch, in order"
