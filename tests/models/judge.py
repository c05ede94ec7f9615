"""One checkpoint through a model runner with LED's hooks, against transformers in float64: a process of its own."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.models import engine, zoo

TOLERANCE = 1e-3  # of a layer's largest magnitude


def judged(
    name: str, folder: Path, port: int, arguments: list[str], rank: int = 0, breakage: str | None = None
) -> dict[str, Any]:
    """What the start found, and the errors of each captured layer; or the refusal."""
    from led_sglang.integration.faults import CaptureError
    from tests.models.breakages import BREAKAGES

    if breakage is not None:
        BREAKAGES[breakage]()
    try:
        runner = engine.runner_of(
            folder, port, *zoo.ENTRIES[name].arguments, *arguments, max_depth=zoo.MAX_DEPTH, rank=rank
        )
    except CaptureError as error:
        return {"refusal": str(error)}
    from led_sglang.integration.scheduler.runtime import runtime

    current = runtime()
    assert current is not None
    errors = compared(runner, current, zoo.load(folder)) if breakage is None else {}
    return {"class": type(runner.model).__name__, "start_check": current.start_check.numbers, **errors}


def compared(runner: Any, current: Any, truth: Any) -> dict[str, Any]:
    """The largest relative errors: of the layers, of the layers before them, and of the final logits."""
    from led_sglang.integration.scheduler.latents.start_run import StartRun

    run = StartRun(runner)
    prompts = [list(req.origin_input_ids) for req in run._batch.reqs]
    capture = current.capture
    capture.takes_all_batches = True
    layers: list[float] = []
    shifted: list[float] = []
    final: list[float] = []
    for step in ("prefill", "decode"):
        logits = run.step(step)
        ids = prompts if step == "prefill" else [[*prompt, prompt[0]] for prompt in prompts]
        for row, prompt in enumerate(ids):
            with torch.no_grad():
                expected = truth(torch.tensor([prompt]), output_hidden_states=True)
            states = [state[0, -1] for state in expected.hidden_states]
            kept = capture.latents(len(capture.layers), len(ids), None)[:, row]
            for layer, found in zip(capture.layers, kept, strict=True):
                layers.append(difference(found, states[layer]))
                shifted.append(difference(found, states[layer - 1]))
            final.append(difference(logits[row], expected.logits[0, -1]))
    run.close()
    return {"layers": max(layers), "shifted": min(shifted), "final": max(final), "captured": sorted(capture.layers)}


def difference(found: Tensor, expected: Tensor) -> float:
    found = found.double()
    return float((found - expected).abs().max() / expected.abs().max())
