"""Batches of every kind, for the tests of `led_sglang.ops.rows.inputs`."""

from dataclasses import fields

import torch

from led_sglang.ops import Backend, ThinkingAutomaton, backend_for
from led_sglang.ops.types import LedStep, RowMeta

VOCAB_SIZE, NUM_SLOTS = 11, 9
MACHINE = ThinkingAutomaton([1, 2], [VOCAB_SIZE - 1], VOCAB_SIZE)  # the last token ends a thought


def draw(seed: int, num_rows: int, is_part: bool, is_mixed: bool) -> tuple[RowMeta, dict[str, torch.Tensor]]:
    """Rows of a batch with padding behind it."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(count: int, top: int) -> torch.Tensor:
        return torch.randint(0, top, (count,), generator=generator)

    batch_size = num_rows + (3 if is_part else 0)
    index = torch.randperm(batch_size, generator=generator)[:num_rows].sort().values if is_part else None
    phase_all = numbers(num_rows, 2).bool()
    meta = RowMeta(
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
        "slots": torch.randperm(batch_size + NUM_SLOTS, generator=generator)[: batch_size + 2],
        "positions": numbers(batch_size + 2, 1 << 30),
        "lengths": numbers(batch_size + 2, 3),
        "states": numbers(batch_size + NUM_SLOTS, len(MACHINE.next_state)),
        "token_ids": numbers(batch_size, VOCAB_SIZE),
        "chosen": numbers(num_rows, VOCAB_SIZE),
        "is_fine": numbers(num_rows, 2).bool(),
    }
    return meta, batch


def run(
    meta: RowMeta, batch: dict[str, torch.Tensor], is_extend: bool, dtype: torch.dtype, backend: str
) -> list[torch.Tensor]:
    """A whole step: everything that it returns or changes."""
    chosen: Backend = backend_for(backend, torch.device("cpu"))
    states, token_ids = batch["states"].clone(), batch["token_ids"].to(dtype)
    lengths = batch["lengths"] if is_extend else None
    inputs = chosen.row_inputs(meta, batch["slots"], batch["positions"], lengths, states)
    unused = torch.empty(0)
    step = LedStep(batch["chosen"], batch["is_fine"], unused, unused, unused, None, unused, unused, unused, None)
    chosen.write_tokens(meta, token_ids, inputs, step)
    chosen.advance(meta, MACHINE.tables("cpu"), states, inputs, token_ids)
    return [*(getattr(inputs, field.name) for field in fields(inputs)), token_ids, states]
