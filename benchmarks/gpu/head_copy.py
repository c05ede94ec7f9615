"""What an 8-bit copy of the head changes (`--led-head-lse fp8`), on a real model's weights and states. Needs no GPU.

    python -m benchmarks.gpu.head_copy --model DIR --text docs/ops.md docs/methods.md --append

Every position of the text is a row of depth 8 and top_k 8, at temperature 0.6. Both steps have the same final logits,
states and noise, in float32, so that nothing but the copy differs.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.provenance import provenance
from led_sglang.ops import Head, KnownLse, LedRows, LedStep, StepInputs, led_step
from led_sglang.ops.backends.lm_head import complete_lse
from led_sglang.ops.fp8.rows import Fp8Rows

RESULT = Path(__file__).parents[1] / "results" / "head_copy.jsonl"
DEPTH, TOP_K, TAU = 8, 8, 0.6
WINDOW = 512  # tokens that the model reads at once
ROWS = 64  # of a step


def states_of(model: Any, ids: list[int]) -> Tensor:
    """(N, DEPTH, H) float32: the normed final state, then h^{L-1}, h^{L-2}, ... of every position."""
    found = []
    for start in range(0, len(ids), WINDOW):
        hidden = model.model(torch.tensor([ids[start : start + WINDOW]]), output_hidden_states=True).hidden_states
        found.append(torch.stack([hidden[-1 - layer][0] for layer in range(DEPTH)], 1).float())
    return torch.cat(found)


def step_of(states: Tensor, head: Head, inputs: StepInputs, always_explores: bool) -> tuple[Tensor, LedStep]:
    """The log-sum-exps of the latents, (DEPTH - 1, R), and the step with them."""
    logits, latents = states[:, 0] @ head.weight.T, states[:, 1:].transpose(0, 1).contiguous()
    num_rows = len(states)
    rows = LedRows.uniform(num_rows, DEPTH, TOP_K, temperature=TAU, trace=True, exploit=not always_explores)
    lse = complete_lse(latents, head, rows.tau[:, None], None)
    known = KnownLse(lse, torch.ones(num_rows, dtype=torch.bool), is_complete=True)
    return lse, led_step(logits, latents, head, rows, inputs, backend="torch", known_lse=known)


def measure(states: Tensor, head: Head) -> dict[str, Any]:
    """Of all positions; differences are the copy's from the weight's."""
    generator = torch.Generator().manual_seed(0)
    copied = replace(head, lse_copy=Fp8Rows.of(head.weight))
    lse, probs, logprob, entropy, counts = [], [], [], [], torch.zeros(4)
    for some in torch.split(states, ROWS):
        uniforms = torch.rand(2, len(some), generator=generator, dtype=torch.float64)
        inputs = StepInputs(torch.ones(len(some), dtype=torch.bool), *uniforms)
        (own_lse, own), (copy_lse, copy) = (step_of(some, one, inputs, False) for one in (head, copied))
        lse.append((copy_lse - own_lse).flatten())
        probs.append((copy.explore_probs - own.explore_probs).abs().sum(1) / 2)
        logprob.append((copy.logprob - own.logprob)[copy.token_ids == own.token_ids])  # type: ignore[operator]
        entropy.append((copy.depth_entropy - own.depth_entropy).abs().flatten())  # type: ignore[operator]
        drawn = [
            led_step(*arguments, backend="torch", known_lse=known).token_ids
            for arguments, known in (
                forced(some, one, inputs, sums) for one, sums in ((head, own_lse), (copied, copy_lse))
            )
        ]
        counts += torch.tensor(
            [
                (copy.depth != own.depth).sum(),
                (copy.token_ids != own.token_ids).sum(),
                (drawn[0] != drawn[1]).sum(),
                own.explored.sum(),
            ]
        )
    num_rows, changes = len(states), torch.cat(lse)
    depth, token, explored_token, explored = (counts / num_rows).tolist()
    return {
        "positions": num_rows,
        "lse": spread(changes.abs()) | {"mean_signed": round(changes.mean().item(), 5)},
        "explore_total_variation": spread(torch.cat(probs)),
        "depth_entropy_nats": spread(torch.cat(entropy)),
        "logprob": spread(torch.cat(logprob).abs()),
        "explored": round(explored, 4),
        "depth_changed": round(depth, 4),
        "token_changed": round(token, 4),
        "token_changed_where_all_explore": round(explored_token, 4),
    }


def forced(states: Tensor, head: Head, inputs: StepInputs, lse: Tensor) -> tuple[tuple[Any, ...], KnownLse]:
    """A step whose rows all explore, of sums that are known."""
    rows = LedRows.uniform(len(states), DEPTH, TOP_K, temperature=TAU, exploit=False)
    latents = states[:, 1:].transpose(0, 1).contiguous()
    known = KnownLse(lse, torch.ones(len(states), dtype=torch.bool), is_complete=True)
    return (states[:, 0] @ head.weight.T, latents, head, rows, inputs), known


def spread(values: Tensor) -> dict[str, float]:
    named = {"mean": values.mean(), "p99": values.quantile(0.99), "max": values.max()}
    return {name: round(value.item(), 5) for name, value in named.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model with a tied or a separate head")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--append", action="store_true", help=f"append the line to benchmarks/results/{RESULT.name}")
    args = parser.parse_args(argv)
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        tokens = AutoTokenizer.from_pretrained(args.model)("\n".join(path.read_text() for path in args.text))
        ids = tokens["input_ids"][: args.positions]
        weight = model.get_output_embeddings().weight
        line = measure(states_of(model, ids), Head(weight, len(weight)))
    line |= {"model": Path(args.model).name, "vocab": len(weight), "text": [path.name for path in args.text]}
    print(json.dumps(line))
    if args.append:
        with RESULT.open("a") as results:
            results.write(json.dumps(line | provenance()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
