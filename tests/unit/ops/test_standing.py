"""Where rows stand before a token and go after it: the compiled loops do what the torch code of other devices does."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from standing_cases import MACHINE, NUM_SLOTS, VOCAB_SIZE, draw, run

from led_sglang.ops import arrays
from led_sglang.ops.rows.inputs import RowInputs, make_row_inputs, move_states


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
    compiled = run(meta, batch, is_extend, dtype, "compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "allows_dynamic_shapes", lambda device: False)
        expected = run(meta, batch, is_extend, dtype, "fused")
    for ours, theirs in zip(compiled, expected, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_a_row_starts_where_its_whole_ids_left_it():
    meta, batch = draw(0, 2, is_part=False, is_mixed=False)
    meta.start_length[:], meta.start_state[:] = torch.tensor([1, 2]), torch.tensor([5, 1])
    batch["lengths"][:2], batch["states"][:] = torch.tensor([1, 1]), 0
    now = make_row_inputs(meta, batch["slots"], batch["positions"], batch["lengths"], batch["states"], "compiled")
    assert now.states.tolist() == [5, 0], "a chunk of the second row's prompt is still to come"
    assert now.thinking.tolist() == [True, False]


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE, 1 << 40])
def test_an_id_outside_the_vocabulary_is_an_ordinary_token(token):
    meta, _ = draw(0, 1, is_part=False, is_mixed=False)
    states, inside = torch.zeros(NUM_SLOTS, dtype=torch.int64), MACHINE.run([1, 2])
    before = RowInputs.of_arrays({"slots": np.array([4]), "states": np.array([inside])})
    move_states(meta, MACHINE.tables("cpu"), states, before, torch.tensor([token]), "compiled")
    assert states[4] == MACHINE.run([1, 2, 5]) and MACHINE.thinking(int(states[4]))
