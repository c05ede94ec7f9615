"""Where rows stand before a token and go after it: the compiled loops do what the torch code of other devices does."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from led_sglang.ops import ThinkingMachine, host
from led_sglang.ops.standing import Seats, Standing, move_states, standing, write_tokens
from led_sglang.ops.types import LedStep

VOCAB_SIZE, NUM_SLOTS = 11, 9
MACHINE = ThinkingMachine([1, 2], [3], VOCAB_SIZE)


def draw(seed: int, num_rows: int, is_part: bool, is_mixed: bool) -> tuple[Seats, dict[str, torch.Tensor]]:
    """Rows of a batch with padding behind it."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(count: int, top: int) -> torch.Tensor:
        return torch.randint(0, top, (count,), generator=generator)

    batch_size = num_rows + (3 if is_part else 0)
    index = torch.randperm(batch_size, generator=generator)[:num_rows].sort().values if is_part else None
    phase_all = numbers(num_rows, 2).bool()
    seats = Seats(
        index=index,
        seed=numbers(num_rows, 1 << 62) - (1 << 61),
        sample=numbers(num_rows, 1 << 20),
        start_state=numbers(num_rows, 6),
        start_length=numbers(num_rows, 3),
        phase_all=phase_all,
        is_led=numbers(num_rows, 2).bool() if is_mixed else None,
        any_phase_all=bool(phase_all.any()),
    )
    batch = {
        "slots": torch.randperm(NUM_SLOTS + 9, generator=generator)[: batch_size + 2] % (NUM_SLOTS + 9),
        "positions": numbers(batch_size + 2, 1 << 30),
        "lengths": numbers(batch_size + 2, 3),
        "states": numbers(NUM_SLOTS + 9, len(MACHINE.next_state)),
        "token_ids": numbers(batch_size, VOCAB_SIZE),
        "chosen": numbers(num_rows, VOCAB_SIZE),
        "is_fine": numbers(num_rows, 2).bool(),
    }
    return seats, batch


def run(seats: Seats, batch: dict[str, torch.Tensor], is_extend: bool, dtype: torch.dtype) -> list[torch.Tensor]:
    """A whole step: everything that it tells or changes."""
    states, token_ids = batch["states"].clone(), batch["token_ids"].to(dtype)
    now = standing(seats, batch["slots"], batch["positions"], batch["lengths"] if is_extend else None, states)
    unused = torch.empty(0)
    step = LedStep(batch["chosen"], batch["is_fine"], unused, unused, unused, None, unused, unused, unused, None)
    write_tokens(seats, token_ids, now, step)
    move_states(seats, MACHINE.tables("cpu"), states, now, token_ids)
    return [*(getattr(now, field.name) for field in fields(now)), token_ids, states]


@given(
    st.integers(0, 1 << 30),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.int64, torch.int32]),
)
def test_compiled_and_torch_agree(seed, num_rows, is_part, is_mixed, is_extend, dtype):
    seats, batch = draw(seed, num_rows, is_part, is_mixed)
    compiled = run(seats, batch, is_extend, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "can_look", lambda device: False)
        expected = run(seats, batch, is_extend, dtype)
    for ours, theirs in zip(compiled, expected, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_a_row_starts_where_its_whole_ids_left_it():
    seats, batch = draw(0, 2, is_part=False, is_mixed=False)
    seats.start_length[:], seats.start_state[:] = torch.tensor([1, 2]), torch.tensor([5, 1])
    batch["lengths"][:2], batch["states"][:] = torch.tensor([1, 1]), 0
    now = standing(seats, batch["slots"], batch["positions"], batch["lengths"], batch["states"])
    assert now.states.tolist() == [5, 0], "a chunk of the second row's prompt is still to come"
    assert now.thinking.tolist() == [True, False]


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE, 1 << 40])
def test_an_id_outside_the_vocabulary_is_an_ordinary_token(token):
    seats, _ = draw(0, 1, is_part=False, is_mixed=False)
    states, inside = torch.zeros(NUM_SLOTS, dtype=torch.int64), MACHINE.run([1, 2])
    before = Standing.of_arrays({"slots": np.array([4]), "states": np.array([inside])})
    move_states(seats, MACHINE.tables("cpu"), states, before, torch.tensor([token]))
    assert states[4] == MACHINE.run([1, 2, 5]) and MACHINE.thinking(int(states[4]))
