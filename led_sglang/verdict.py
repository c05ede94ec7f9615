"""Is LED for this model? What the statistics of its layers (`led_sglang.analysis`) say, in words and as JSON.

LED adds to the final layer's candidates what the layers below it think of them. That helps where those layers are less
sure than the last, so that the sum is wider, and still know the candidates, so that it is not noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["FILE_NAME", "judge", "line_beside"]

FILE_NAME = "led_verdict.json"
"""What `analysis --out MODEL/led_verdict.json` writes and a server that serves MODEL reads at its start."""

LEAST_RATIO = 1.1  # of a layer's entropy to the final layer's: below it the mixture is as sure as the final layer
LEAST_COVERAGE = 0.5  # of the final layer's top k among a layer's own top k
JUDGED_K = "2"  # the coverage that a depth is judged by: the runner-up is what exploring draws
Row = Mapping[str, Any]  # of one layer: layer, entropy (nats), coverage by k


def judge(unnormed: Sequence[Row], normed: Sequence[Row], exploration_rate: float) -> dict[str, Any]:
    """Of the rows of layers 1 .. L without and with the final norm on the latents; the last rows are the same layer.

    exploration_rate: E[1 - max p] of the final layer, in [0, 1]. Returns `answer` ("yes": as LED is, "latent_norm":
    with that switch, "no"), the `depth`, `top_k` and `latent_norm` that follow (depth 1 and top_k 1 where it is no),
    `exploration_rate`, `forms` with both findings, and `words`, one line. Raises ValueError for fewer than two layers.
    """
    if len(unnormed) < 2 or len(unnormed) != len(normed):
        raise ValueError(f"a verdict needs two layers or more, twice: {len(unnormed)} and {len(normed)} were given")
    forms = {"unnormed": _form(unnormed), "normed": _form(normed)}
    is_normed = forms["unnormed"]["depth"] < 2 <= forms["normed"]["depth"]
    chosen = forms["normed" if is_normed else "unnormed"]
    answer = "no" if chosen["depth"] < 2 else "latent_norm" if is_normed else "yes"
    if answer == "no":
        both = f"{forms['unnormed']['why']}; with the norm, {forms['normed']['why']}"
        words = f"no: {both}"
    elif answer == "yes":
        words = f"yes: {chosen['why']}"
    else:
        words = f"only with latent_norm: {forms['unnormed']['why']}; with the norm, {chosen['why']}"
    if answer != "no":
        percent = f"{100 * exploration_rate:.0f} %"
        words += f"; depth {chosen['depth']}, top_k {chosen['top_k']}, about {percent} of tokens explore"
    return {
        "answer": answer,
        "depth": chosen["depth"],
        "top_k": chosen["top_k"],
        "latent_norm": is_normed,
        "exploration_rate": exploration_rate,
        "forms": forms,
        "words": words,
    }


def _form(rows: Sequence[Row]) -> dict[str, Any]:
    """How far down from the last layer both hold, and what ends it."""
    final = rows[-1]
    read: list[Row] = []
    why = ""
    for row in reversed(rows[:-1]):
        why = _objection(row, final)
        if why:
            break
        read.append(row)
    if not read:
        return {"depth": 1, "top_k": 1, "why": why}
    entropies = [row["entropy"] for row in read]
    known = [k for k in final["coverage"] if all(row["coverage"][k] >= LEAST_COVERAGE for row in read)]
    found = (
        f"{_layers(read)} less sure than the last ({min(entropies):.2f} to {max(entropies):.2f} nats beside "
        f"{final['entropy']:.2f}) and {'has' if len(read) == 1 else 'have'} "
        f"{min(row['coverage'][JUDGED_K] for row in read):.2f} or more of its top {JUDGED_K}"
    )
    return {"depth": len(read) + 1, "top_k": max(map(int, known)), "why": found + (f" ({why})" if why else "")}


def _objection(row: Row, final: Row) -> str:
    """Empty where LED may read the layer."""
    if not math.isfinite(row["entropy"]):
        return f"layer {row['layer']} is not finite"
    if row["entropy"] <= final["entropy"]:
        return f"layer {row['layer']} is surer than the last ({row['entropy']:.2f} nats beside {final['entropy']:.2f})"
    if row["entropy"] < LEAST_RATIO * final["entropy"]:
        return (
            f"layer {row['layer']} is hardly less sure than the last ({row['entropy']:.2f} nats beside "
            f"{final['entropy']:.2f})"
        )
    if row["coverage"][JUDGED_K] < LEAST_COVERAGE:
        covered = row["coverage"][JUDGED_K]
        return f"layer {row['layer']} has only {covered:.2f} of the last one's top {JUDGED_K}"
    return ""


def _layers(read: Sequence[Row]) -> str:
    if len(read) == 1:
        return f"layer {read[0]['layer']} is"
    return f"layers {read[-1]['layer']} to {read[0]['layer']} are"


def line_beside(model: str) -> str | None:
    """What the verdict file in the model's folder says, in one line; None where there is none."""
    path = Path(model) / FILE_NAME
    if not path.is_file():
        return None
    try:
        words = json.loads(path.read_text(encoding="utf-8"))["verdict"]["words"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path} is no verdict of led_sglang.analysis: {type(error).__name__}: {error}"
    return f"{path}: {' '.join(str(words).split())}"
