"""Cases with penalties and bias: of every kind, on some rows, with the tables of a larger batch."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from led_sglang.ops import LogitEdits
from tests.unit.ops.cases.op_cases import Case, make_case

# What a request may ask for: (additive, scaling, bias) of one token, drawn by kind.
KINDS = ("bias down", "bias up", "ban", "frequency and presence", "rewarded", "repetition", "stop", "all")


def tables(kind: str, num_rows: int, vocab: int, seed: int = 0) -> dict[str, Tensor | None]:
    """(T, V) each, or None: about a third of the tokens is touched."""
    rng = torch.Generator().manual_seed(seed)

    def draw(low: float, high: float, rest: float) -> Tensor:
        values = torch.rand(num_rows, vocab, generator=rng) * (high - low) + low
        return values.where(torch.rand(num_rows, vocab, generator=rng) < 0.3, rest)

    kinds = {
        "bias down": {"bias": draw(-4, 0, 0.0)},
        "bias up": {"bias": draw(0, 4, 0.0)},
        "ban": {"bias": draw(-100, -100, 0.0)},
        "frequency and presence": {"additive": draw(-3, 0, 0.0)},
        "rewarded": {"additive": draw(0, 2, 0.0), "scaling": draw(0.6, 0.9, 1.0)},
        "repetition": {"scaling": draw(1.1, 2.0, 1.0)},
        "stop": {"additive": draw(-torch.inf, -torch.inf, 0.0).nan_to_num(nan=-torch.inf, neginf=-torch.inf)},
        "all": {"additive": draw(-3, 1, 0.0), "scaling": draw(0.7, 1.8, 1.0), "bias": draw(-6, 3, 0.0)},
    }
    return {"additive": None, "scaling": None, "bias": None} | kinds[kind]


def by_hand(logits: Tensor, edits: LogitEdits) -> Tensor:
    """The engine's order and arithmetic, written anew: (R, V) logits, float32."""
    rows = torch.arange(len(logits)) if edits.rows is None else edits.rows
    if edits.additive is not None:
        logits = logits + edits.additive[rows]
    if edits.scaling is not None:
        scaling = edits.scaling[rows]
        logits = torch.where(logits < 0, logits * scaling, logits / scaling)
    return logits if edits.bias is None else logits + edits.bias[rows]


def with_edits(case: Case, kind: str, is_edited: Tensor | None = None, seed: int = 0) -> Case:
    """Rows that are not edited have identity tables; these are a batch's of twice as many rows, in another order."""
    num_rows, vocab = case.final_logits.shape
    rows = 2 * torch.arange(num_rows).flip(0) + 1
    found = tables(kind, 2 * num_rows, vocab, seed)
    if is_edited is not None:
        plain = rows[~is_edited]
        found = {
            name: None if table is None else table.index_fill(0, plain, 1.0 if name == "scaling" else 0.0)
            for name, table in found.items()
        }
        is_edited = is_edited.nonzero().squeeze(1)
    edits = LogitEdits(**found, rows=rows, edited=is_edited)
    return replace(case, final_logits=by_hand(case.final_logits, edits), edits=edits)


def edited_case(kind: str, num_rows: int = 9, vocab: int = 97, **changes: Any) -> Case:
    return with_edits(make_case(num_rows, vocab, **changes), kind)
