"""What `correct` asks of every backend and form: kinds of rows, heads and batches that a server meets."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import Case, make_case
from led_sglang.ops import Head, LedStep

NUM_OTHERS = 4  # rows of a mixed batch that are not LED's


@dataclass(frozen=True)
class Size:
    num_rows: int
    vocab: int
    hidden: int
    depth: int


def rms_norm(hidden: Tensor) -> Tensor:
    """(N, H) -> (N, H)"""
    wide = hidden.float()
    return (wide * wide.square().mean(-1, keepdim=True).add(1e-6).rsqrt()).to(hidden.dtype)


def plain(head: Head, size: Size, /, **rows: Any) -> Case:
    return make_case(head, size.num_rows, size.depth, (size.num_rows + 1) // 2, **rows)


def row_numbers(size: Size, head: Head) -> Tensor:
    return torch.arange(size.num_rows, device=head.weight.device)


def without_lse(head: Head, size: Size) -> Case:
    """Half of the rows explore, whatever the uniform said: those above the cut are left to the second pass."""
    return plain(head, size).with_coins((size.num_rows + 1) // 2, keeps_mask=False)


def min_p(head: Head, size: Size) -> Case:
    row = row_numbers(size, head)
    return plain(head, size, min_p=(row % 3) * 0.05, any_min_p=True)


def mixed_rows(head: Head, size: Size) -> dict[str, Any]:
    row = row_numbers(size, head)
    return {
        "depth": row % size.depth + 1,
        "top_k": row % 8 + 1,
        "mixed_depth": True,
        "mixed_top_k": True,
        "temperature": 0.4 + row / (2 * size.num_rows),
    }


def mixed(head: Head, size: Size) -> Case:
    return plain(head, size, **mixed_rows(head, size))


def trace(head: Head, size: Size) -> Case:
    return plain(head, size, trace=row_numbers(size, head) % 2 == 0, any_trace=True)


def wide(head: Head, size: Size, top_k: int) -> Case:
    return plain(head, size, top_k=torch.full_like(row_numbers(size, head), top_k), max_top_k=top_k)


def phases(head: Head, size: Size) -> Case:
    """Rows that are greedy, that never exploit, and that are outside their phase."""
    row = row_numbers(size, head)
    return plain(head, size, greedy=row % 3 == 0, any_greedy=True, exploit=row % 4 > 0, active=row % 5 > 0)


def ablations(head: Head, size: Size) -> Case:
    """Normed latents, layers one earlier, layers that are normalised."""
    row, depth = row_numbers(size, head), size.depth - 1
    flags = {"any_norm": True, "any_offset": True, "any_normalize": True, "max_depth": depth}
    columns = {"latent_norm": row % 2 == 0, "latent_offset": row % 2, "normalize_layers": row % 3 == 0}
    case = plain(head, size, depth=torch.full_like(row, depth), **columns, **flags)
    return case.with_head(final_norm=rms_norm)


def batch(head: Head, size: Size) -> Case:
    """LED's rows lie between others'."""
    return among_others(plain(head, size))


def among_others(case: Case) -> Case:
    num_rows, device = len(case.uniform), case.uniform.device
    whole = num_rows + NUM_OTHERS
    index = torch.randperm(whole, generator=torch.Generator().manual_seed(1))[:num_rows].sort().values.to(device)

    def spread(values: Tensor, axis: int) -> Tensor:
        shape = [*values.shape]
        shape[axis] = whole
        # Nobody's values: a backend that reads a row that is not LED's shows it.
        return values.new_full(shape, torch.nan).index_copy(axis, index, values)

    return replace(
        case,
        hidden=spread(case.hidden, 0),
        batch_logits=spread(case.batch_logits, 0),
        batch_latents=spread(case.batch_latents, 1),
        index=index,
    )


def everything(head: Head, size: Size) -> Case:
    """All of it at once, with rows for the second pass."""
    row = row_numbers(size, head)
    columns = {"min_p": (row % 3) * 0.05, "greedy": row % 6 == 5, "trace": row % 4 == 0, "active": row % 7 > 0}
    case = plain(head, size, **mixed_rows(head, size), **columns, any_min_p=True, any_greedy=True, any_trace=True)
    return among_others(case.with_coins((size.num_rows + 1) // 2, keeps_mask=False))


def half_logits(head: Head, size: Size) -> Case:
    """bfloat16 logits, as some engines keep them; six candidates, since beyond the favourites many are equal."""
    row = row_numbers(size, head)
    case = plain(head, size, top_k=torch.full_like(row, 6), max_top_k=6)
    return replace(case, batch_logits=case.batch_logits.bfloat16())


def biased(head: Head, size: Size) -> Case:
    bias = torch.linspace(-1, 1, len(head.weight), device=head.weight.device).to(head.weight.dtype)
    return plain(head, size).with_head(bias=bias)


SCENARIOS: dict[str, Callable[[Head, Size], Case]] = {
    "plain": plain,
    "without_lse": without_lse,
    "everything": everything,
    "mixed_batch": batch,
    "mixed_rows": mixed,
    "min_p": min_p,
    "trace": trace,
    "top_k_20": lambda head, size: wide(head, size, 20),
    "top_k_64": lambda head, size: wide(head, size, 64),
    "phases": phases,
    "ablations": ablations,
    "half_logits": half_logits,
    "capped": lambda head, size: plain(head, size).with_head(softcap=12.0, scale=1.5),
    "padded": lambda head, size: plain(head, size).with_head(num_rows=head.num_rows - 5),
    "biased": biased,
}


def on_two_ranks(case: Case, run: Callable[[Case], LedStep]) -> LedStep:
    """The first of two ranks of a head that is cut in two, unevenly; the second one runs before it.

    A step makes at most one collective, and nothing before it depends on another rank.
    """
    weight, coin_threshold = case.head.weight, (case.head.num_rows * 3 // 5) // 16 * 16
    sent: list[Tensor] = []

    def send(values: Tensor) -> Tensor:
        sent.append(values)
        return torch.stack([values, values])

    second = {
        "weight": weight[coin_threshold:],
        "num_rows": case.head.num_rows - coin_threshold,
        "first_id": coin_threshold,
    }
    run(case.with_head(**second, all_gather=send))
    if len(sent) != 1:
        raise AssertionError(f"a step made {len(sent)} collectives, not 1")
    first = {"weight": weight[:coin_threshold], "num_rows": coin_threshold}
    return run(case.with_head(**first, all_gather=lambda values: torch.stack([values, sent[0]])))
