"""Every backend and form on this device against the float64 reference, by error budget."""

import argparse
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.cases import Case, make
from led_sglang.ops import LedStep, ThinkingMachine, led_step
from led_sglang.ops.backends.self_test import difference_of
from led_sglang.ops.rows import stats
from led_sglang.ops.rows.inputs import Seats, Standing, move_states, standing

BUDGET = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
HEADS: dict[str, dict[str, Any]] = {"plain": {}, "capped": {"softcap": 12.0, "scale": 1.5}, "padded": {"num_rows": 0}}


def run(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One line for each dtype, head, backend and form. Raises where one is outside its budget."""
    sizes = (5, 101, 32) if args.dry_run else (17, 32001, 512)
    for dtype, budget in BUDGET.items():
        for name, changes in HEADS.items():
            case = make(*sizes, 4, 0.5, dtype, args.device).with_head(**changes_of(changes, sizes[1]))
            truth = reference(case)
            for backend in ("eager", "fused", "triton"):
                for form in ("coin_first", "one_pass") if backend != "eager" else ("coin_first",):
                    error = difference_of(getattr(case, form)(backend), truth)
                    line = {"dtype": str(dtype)[6:], "head": name, "backend": backend, "form": form, "error": error}
                    yield line
                    if not error <= budget:
                        raise AssertionError(f"outside the budget of {budget}: {line}")
    yield counted(case)
    yield stood(len(case.rows.active), args.device)


def counted(case: Case) -> dict[str, Any]:
    """Flags and counters of a step in one kernel. Raises where they are not those of torch (on a CPU, of the loops)."""
    from led_sglang.ops.kernels.row_stats import tell

    step, rows, device = case.coin_first("triton"), case.rows, case.final_logits.device
    slots = torch.arange(len(rows.active), device=device)
    now = Standing(case.noise.coin, case.noise.token, slots, slots, slots % 2 == 0, rows.active, slots)
    one, other = (stats.Counters.zeros(rows.max_depth, 3, device) for _ in range(2))
    flags = tell(now, step, slots % 3, one)
    expected = stats.tell(now, step, False, slots % 3, other, "fused")
    if not torch.equal(flags, expected) or not torch.equal(one.values, other.values):
        raise AssertionError(
            f"flags {flags.tolist()}, not {expected.tolist()}; counters {one.values}, not {other.values}"
        )
    return {"flags": len(flags), "counted": int(one.values.sum())}


def stood(num_rows: int, device: torch.device) -> dict[str, Any]:
    """Where rows stand before a token and after it. Raises where the kernels do not say what torch does."""
    from led_sglang.ops.kernels import row_inputs

    machine = ThinkingMachine([1, 2], [3], 11)
    tables, generator = machine.tables(device), torch.Generator().manual_seed(num_rows)

    def numbers(top: int, count: int = num_rows) -> torch.Tensor:
        return torch.randint(0, top, (count,), generator=generator).to(device)

    index = torch.arange(num_rows, device=device) + 2
    flags = numbers(2).bool(), numbers(2).bool()
    seats = Seats(index, numbers(1 << 62) - (1 << 61), numbers(99), numbers(6), numbers(3), *flags, True)
    batch = num_rows + 4
    slots, positions, lengths = torch.randperm(batch).to(device), numbers(1 << 30, batch), numbers(3, batch)
    before, tokens = numbers(len(machine.next_state), batch), numbers(11, batch)
    found = []
    for stand, move in (
        (row_inputs.standing, row_inputs.move_states),
        (partial(standing, backend="fused"), partial(move_states, backend="fused")),
    ):
        states = before.clone()
        now = stand(seats, slots, positions, lengths, states)
        move(seats, tables, states, now, tokens)
        found.append({**{field.name: getattr(now, field.name) for field in fields(now)}, "after": states})
    wrong = [name for name, value in found[0].items() if not torch.equal(value, found[1][name])]
    if wrong:
        raise AssertionError(f"the kernels of ops.kernels.row_inputs differ from torch in {', '.join(wrong)}")
    return {"stood": num_rows}


def changes_of(changes: dict[str, Any], vocab: int) -> dict[str, Any]:
    return {"num_rows": vocab - 5} if "num_rows" in changes else changes


def reference(case: Case) -> LedStep:
    return led_step(case.final_logits, case.latents, case.head, case.rows, case.noise, backend="reference")
