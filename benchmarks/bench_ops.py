"""What one LED step costs after the final layer's logits, against the paper's listing on the same inputs.

    python benchmarks/bench_ops.py --rows 64 --depth 8 --vocab 151936 --hidden 2560 --explore-rate 0.1 --json

naive: the listing as published (backend "eager"): every row and depth, full softmax over [depth - 1, rows, V] float32.
led: what the server runs (backend "auto"), in the form it chooses for so many rows. --form one_pass first makes the
log-sum-exps of all rows that may explore, as the server's head hook does; a GPU's time holds the final product too.
Both are given the final logits and timed for everything after them; nothing is printed unless they agree. The last line
is one JSON object.
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from measure import interleaved_median_ms, peak_bandwidth, peak_extra_mib, peak_flops
from provenance import provenance

from led_sglang.cli import files
from led_sglang.cli.arguments import integer, number
from led_sglang.cli.endings import guarded
from led_sglang.config.arguments import FORMS
from led_sglang.ops import Head, LedRows, LedStep, StepInputs, backend_for, led_step
from led_sglang.ops.backends import one_pass

RESULTS = Path(__file__).parent / "results" / "ops_cpu.jsonl"
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}


@dataclass(frozen=True)
class Inputs:
    final_logits: torch.Tensor
    latents: torch.Tensor
    head: Head
    rows: LedRows
    inputs: StepInputs

    def one_pass(self, backend: str) -> LedStep:
        with torch.inference_mode():
            device = self.final_logits.device
            chosen, tau = backend_for(backend, device), self.rows.tau
            mask = one_pass.one_pass_mask(self.rows, self.inputs, chosen.coin_threshold)
            lse = torch.zeros(self.latents.shape[:2], device=device)
            if chosen.allows_dynamic_shapes:
                one_pass.separate_pass(self.latents, self.head, tau, mask, lse)
            else:
                chosen.head_pass(self.latents[0], self.latents, self.head, tau, mask, lse)
            known_lse = one_pass.known_lse_of(self.rows, lse, mask, chosen.coin_threshold)
            arguments = (self.final_logits, self.latents, self.head, self.rows, self.inputs)
            return led_step(*arguments, backend=chosen, known_lse=known_lse)

    def shipped(self, args: argparse.Namespace) -> LedStep:
        return self.one_pass(args.backend) if args.form == "one_pass" else self.run(args.backend)

    def run(self, backend: str) -> LedStep:
        with torch.inference_mode():
            return led_step(self.final_logits, self.latents, self.head, self.rows, self.inputs, backend=backend)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=integer(1), default=64)
    parser.add_argument("--depth", type=integer(1), default=8)
    parser.add_argument("--top-k", type=integer(1), default=8)
    parser.add_argument("--vocab", type=integer(1), default=151936)
    parser.add_argument("--hidden", type=integer(1), default=2560)
    parser.add_argument(
        "--explore-rate", type=number(0, 1), default=0.1, help="share of the rows whose coin says explore"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=TOLERANCE, help="of the head; default float32 on cpu, bfloat16 on cuda")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--form", choices=FORMS, default="auto")
    parser.add_argument("--repeats", type=integer(1), default=3)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    parser.add_argument("--append", action="store_true", help=f"also append it, with versions, to {RESULTS.name}")
    return parser.parse_args()


def make_inputs(args: argparse.Namespace) -> Inputs:
    """Every layer likes the same six tokens of a row, each in its own order: peaked, and in disagreement."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    torch.manual_seed(0)
    weight = torch.empty(args.vocab, args.hidden, device=device, dtype=dtype)
    for part in weight.split(1 << 14):  # by parts: a float32 copy of a whole bfloat16 head may not fit
        part.copy_(torch.randn(part.shape, device=device) / args.hidden**0.5)
    favourites = torch.randint(args.vocab, (args.rows, 6), device=device)
    strength = torch.randn(args.depth, args.rows, 6, device=device).mul_(2).add_(9)
    streams = torch.einsum("lrf,rfh->lrh", strength, weight[favourites].float()).to(dtype)
    final_logits = (streams[0] @ weight.T).float()
    num_exploring = round(args.explore_rate * args.rows)
    coin_uniform = torch.full((args.rows,), 1 - 2**-20, device=device, dtype=torch.float64)
    coin_uniform[torch.randperm(args.rows, device=device)[:num_exploring]] = 0.0
    token_uniform = torch.rand(args.rows, device=device, dtype=torch.float64)
    inputs = StepInputs(torch.ones_like(coin_uniform, dtype=torch.bool), coin_uniform, token_uniform)
    rows = LedRows.uniform(args.rows, args.depth, args.top_k, device)
    return Inputs(final_logits, streams[1:].contiguous(), Head(weight, args.vocab), rows, inputs)


def max_abs_error(inputs: Inputs, args: argparse.Namespace) -> float:
    """Largest difference of any probability; refuses to go on where the two do not decode the same."""
    naive, led = inputs.run("eager"), inputs.shipped(args)
    error = max(
        (getattr(naive, name) - getattr(led, name)).abs().max().item()
        for name in ("exploit_probs", "explore_probs", "confidence")
    )
    num_exploring = int(led.explored.sum())
    if not torch.equal(naive.explored, led.explored) or error > TOLERANCE[args.dtype]:
        raise SystemExit(f"the two paths disagree by {error:.2e}: nothing was timed")
    if args.dtype == "float32" and not torch.equal(naive.token_ids, led.token_ids):
        raise SystemExit("the two paths picked different tokens: nothing was timed")
    if num_exploring != round(args.explore_rate * args.rows):
        raise SystemExit(f"{num_exploring} rows explored, not the share asked for: nothing was timed")
    return error


def ideal_ms(inputs: Inputs, args: argparse.Namespace) -> float:
    """Reading head and final logits once, or the exploring rows' matrix product, at this machine's ceilings."""
    device, weight = inputs.final_logits.device, inputs.head.weight
    num_latents = round(args.explore_rate * args.rows) * (args.depth - 1)
    num_bytes = inputs.final_logits.numel() * 4 + (weight.numel() * weight.element_size() if num_latents else 0)
    is_cuda = device.type == "cuda"
    flops = peak_flops(weight.dtype, device, 8192 if is_cuda else 1024)
    bandwidth = peak_bandwidth(device, 1 << 30 if is_cuda else 1 << 28)
    return 1e3 * max(2 * num_latents * weight.numel() / flops, num_bytes / bandwidth)


def command() -> None:
    args = parse_args()
    if args.append:
        files.check_file(RESULTS)
    device = torch.device(args.device)
    args.dtype = args.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    args.form = one_pass.form_of(args.rows, args.form, backend_for(args.backend, device).allows_dynamic_shapes)
    inputs = make_inputs(args)
    error = max_abs_error(inputs, args)
    runs = {"naive": lambda: inputs.run("eager"), "led": lambda: inputs.shipped(args)}
    times = interleaved_median_ms(runs, device, args.repeats)
    peaks = {name: peak_extra_mib(run, device) for name, run in runs.items()}
    source = provenance()
    result = {
        "device": source["device"],
        "rows": args.rows,
        "naive_ms": round(times["naive"], 3),
        "led_ms": round(times["led"], 3),
        "naive_peak_mib": round(peaks["naive"], 2),
        "led_peak_mib": round(peaks["led"], 2),
        "max_abs_error": error,
        "form": f"{args.form}, backend {args.backend}, {args.explore_rate:.0%} of rows explore, {args.dtype}",
        "share_of_roofline": round(ideal_ms(inputs, args) / times["led"], 3),
    }
    if not args.json:
        print(f"{result['naive_ms'] / result['led_ms']:.1f} times faster, ", end="")
        print(f"{result['naive_peak_mib'] / result['led_peak_mib']:.0f} times less extra memory")
    if args.append:
        setting = {
            name: getattr(args, name) for name in ("depth", "top_k", "vocab", "hidden", "explore_rate", "repeats")
        }
        setting |= {"threads": torch.get_num_threads(), "load_average": os.getloadavg()[0]}
        files.append_line(RESULTS, json.dumps(result | setting | source))
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(guarded("bench_ops", command))
