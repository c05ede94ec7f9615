"""Where rows stand before a token and go after it: the compiled loops do what the torch code of other devices does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from led_sglang.ops import backend_for
from led_sglang.ops.types import RowInputs
from tests.unit.ops.cases.input_cases import MACHINE, NUM_SLOTS, VOCAB_SIZE, draw, run

CPU = torch.device("cpu")
BACKENDS = pytest.mark.parametrize("backend", ["numba", "torch"])


@given(
    st.integers(0, 1 << 30),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.int64, torch.int32]),
)
def test_compiled_and_torch_agree(seed, num_rows, is_part, is_mixed, is_extend, dtype):
    meta, batch = draw(seed, num_rows, is_part, is_mixed)
    compiled, expected = (run(meta, batch, is_extend, dtype, backend) for backend in ("numba", "torch"))
    for ours, theirs in zip(compiled, expected, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@BACKENDS
def test_a_row_starts_where_its_whole_ids_left_it(backend):
    meta, batch = draw(0, 2, is_part=False, is_mixed=False)
    meta.start_length[:], meta.start_state[:] = torch.tensor([1, 2]), torch.tensor([5, 1])
    batch["lengths"][:2], batch["states"][:] = torch.tensor([1, 1]), 0
    chosen = backend_for(backend, CPU)
    now = chosen.row_inputs(meta, batch["slots"], batch["positions"], batch["lengths"], batch["states"])
    assert now.states.tolist() == [5, 0], "a chunk of the second row's prompt is still to come"
    assert now.thinking.tolist() == [True, False]


@BACKENDS
@pytest.mark.parametrize("token", [-1, VOCAB_SIZE, 1 << 40])
def test_an_id_outside_the_vocabulary_is_an_ordinary_token(token, backend):
    meta, _ = draw(0, 1, is_part=False, is_mixed=False)
    states, inside = torch.zeros(NUM_SLOTS, dtype=torch.int64), MACHINE.run([1, 2])
    row, none = torch.tensor([4]), torch.empty(0)
    before = RowInputs(none, none, none, row, torch.tensor([inside]), none, none)
    backend_for(backend, CPU).advance(meta, MACHINE.tables("cpu"), states, before, torch.tensor([token]))
    assert states[4] == MACHINE.run([1, 2, 5]) and MACHINE.thinking(int(states[4]))
