#!/usr/bin/env python3
"""Draws docs/images/training.svg from the training logs: the supervised loss, and what reinforcement learning does.

python scripts/plot_training.py
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from led_sglang.evals.report.figures import style, to_svg

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "training"
OUT = ROOT / "docs" / "images" / "training.svg"


def columns(path: Path) -> dict[str, list[float | None]]:
    """By name; None where nothing was measured at that step."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) if row[name] else None for row in rows] for name in rows[0]}


def draw(axes: Any, log: dict[str, list[float | None]], index: int, name: str, label: str) -> None:
    points = [(x, y) for x, y in zip(log["step"], log[name], strict=True) if y is not None]
    options = {**style(index), "marker": style(index)["marker"] if len(points) < 30 else None}
    axes.plot(*zip(*points, strict=True), label=label, **options)


def main() -> None:
    supervised, reinforced = columns(LOGS / "training_log.csv"), columns(LOGS / "rl_log.csv")
    figure = Figure(figsize=(9, 3), layout="constrained")
    loss, scores, entropy = figure.subplots(1, 3)
    draw(loss, supervised, 0, "loss", "loss")
    loss.set(title="supervised", xlabel="step", ylabel="mean loss of 100 steps", yscale="log")
    draw(scores, reinforced, 1, "reward", "reward (training, T = 1)")
    draw(scores, reinforced, 2, "pass_at_1", "countdown pass@1 (held out, T = 0.6)")
    draw(scores, reinforced, 3, "pass_at_16", "countdown pass@16")
    scores.set(title="reinforcement", xlabel="step", ylim=(0, 1))
    scores.legend(fontsize=7, frameon=False)
    draw(entropy, reinforced, 4, "entropy", "entropy")
    entropy.set(title="final layer, sampled tokens", xlabel="step", ylabel="entropy (nats, T = 1)", ylim=(0, None))
    for axes in (loss, scores, entropy):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    OUT.write_text(to_svg(figure))
    print(OUT)


if __name__ == "__main__":
    main()
