"""A chain of tokens of each request, decided one step after another and all in one step."""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from led_sglang.ops import Backend, LedRows, LedStep, RowMeta, ThinkingAutomaton, led_step
from led_sglang.ops.types import Counters
from tests.unit.ops.cases.op_cases import Case, make_case, make_rows

CPU = torch.device("cpu")
OPEN, CLOSE, VOCAB = [1, 2], [3], 40
AUTOMATON = ThinkingAutomaton(OPEN, CLOSE, VOCAB)
TABLES = AUTOMATON.tables("cpu")
LENGTHS = (4, 1, 3)  # tokens of each request's chain
REQUEST_IDX = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))  # (T,) of a token row
PLACE = torch.cat([torch.arange(length) for length in LENGTHS])  # (T,) in its chain
# What the requests' chains hold: the phase opens and closes inside of them.
DRAFTS = torch.tensor([1, 2, 7, 3, 9, 5, 3, 6])
STARTS = torch.tensor([0, AUTOMATON.run([1, 2]), AUTOMATON.run([1, 2])])  # thinking states before the chains
POSITIONS = torch.tensor([100, 7, 31])


def requests() -> tuple[RowMeta, LedRows]:
    """Three that differ in all they ask for; the last is decoded in every phase."""
    number = torch.arange(len(LENGTHS))
    meta = RowMeta(None, 11 + number, number % 2, 0 * number, 0 * number - 1, number == 2, None, True)
    depth, top_k, tau = torch.tensor([4, 2, 3]), torch.tensor([8, 5, 3]), torch.tensor([1.5, 0.7, 1.0])
    return meta, make_rows(
        3, depth, top_k, temperature=tau, greedy=number == 1, exploit=number < 2, trace=number == 0, min_p=number * 0.01
    )


def one_step(
    backend: Backend, case: Case, meta: RowMeta, rows: LedRows, batch: tuple[Tensor, Tensor, Tensor], drafts: Tensor
) -> tuple[dict[str, Any], Tensor]:
    """batch: slots, positions, states. What a step returns and writes, and the states that follow the drafts."""
    slots, positions, states = batch
    states = states.clone()
    inputs = backend.row_inputs(meta, slots, positions, None, states)
    step = led_step(case.final_logits, case.latents, case.head, rows, inputs, backend=backend)
    token_ids = drafts.clone()
    backend.write_tokens(meta, token_ids, inputs, step)
    counters = Counters.zeros(8, 1, CPU)
    flags = backend.count(inputs, step, False, torch.zeros(meta.num_rows, dtype=torch.int64), counters)
    backend.advance(meta, TABLES, states, inputs, drafts)
    found = {field.name: getattr(inputs, field.name) for field in fields(inputs) if field.name != "slots"}
    found |= {field.name: getattr(step, field.name) for field in fields(LedStep)}
    found |= {"written": token_ids, "flags": flags}
    return {name: value for name, value in found.items() if value is not None}, states


def part(case: Case, token_rows: Tensor) -> Case:
    return replace(case, final_logits=case.final_logits[token_rows], latents=case.latents[:, token_rows])


def together(backend: Backend, case: Case) -> dict[str, Any]:
    """All token rows in one step: their states before it are those that the drafts before them leave."""
    meta, rows = requests()
    states = torch.empty(len(DRAFTS), dtype=torch.int64)
    for t in range(len(DRAFTS)):
        states[t] = STARTS[REQUEST_IDX[t]] if PLACE[t] == 0 else TABLES.advance(states[t - 1 : t], DRAFTS[t - 1 : t])[0]
    batch = torch.arange(len(DRAFTS)), POSITIONS[REQUEST_IDX] + PLACE, states
    return one_step(backend, case, meta.take(REQUEST_IDX), rows.take(REQUEST_IDX), batch, DRAFTS)[0]


def one_by_one(backend: Backend, case: Case) -> dict[str, Any]:
    """A token row of each request in a step, with the requests' own columns; each value in the order of `together`."""
    whole, all_rows = requests()
    states, found = STARTS.clone(), [{} for _ in DRAFTS]
    for place in range(max(LENGTHS)):
        token_rows = (PLACE == place).nonzero().squeeze(1)
        own = REQUEST_IDX[token_rows]  # slots too
        batch = own, (POSITIONS + place)[own], states
        values, states = one_step(
            backend, part(case, token_rows), whole.take(own), all_rows.take(own), batch, DRAFTS[token_rows]
        )
        for i, t in enumerate(token_rows.tolist()):
            found[t] = {name: value[i] for name, value in values.items()}
    return {name: torch.stack([row[name] for row in found]) for name in found[0]}


def compare(backend: Backend) -> None:
    """Token for token, and all that is told of each; some rows explore, and some are outside their phase."""
    case = make_case(len(DRAFTS), VOCAB, hidden=32, depth=4, seed=3)
    found, expected = together(backend, case), one_by_one(backend, case)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, equal_nan=True)
        else:
            assert torch.equal(value, expected[name]), name
    assert found["active"].tolist() == [False, False, True, True, True, True, True, True]
    assert found["explored"].any() and not found["explored"][found["active"]].all()
