"""The one-pass form under the engine's order of graph captures: from the largest size down, two warm-ups, a capture.

A kernel cannot be loaded while a stream is captured, so a warm-up must launch all that its capture launches. Then each
graph is replayed with rows of a smaller batch, against plain torch.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.gpu.cases import Case, gpu_backend, make_case, make_head
from led_sglang.integration.scheduler.latents.one_pass import OnePassState
from led_sglang.ops.backends import one_pass
from led_sglang.ops.types import LedRows, StepInputs

TOLERANCE = 3e-2  # of a log-sum-exp, bfloat16
Lines = Iterator[dict[str, Any]]
Columns = TypeVar("Columns", LedRows, StepInputs)

head_of = lru_cache(maxsize=1)(make_head)


def decode_graph_sizes(max_rows: int, is_padded: bool) -> list[int]:
    """As SGLang chooses them: each size without padding, else in growing strides."""
    if not is_padded:
        return list(range(1, max_rows + 1))
    sizes = [1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 512, 16), *range(512, max_rows + 1, 32)]
    return sorted({size for size in sizes if size <= max_rows} | {max_rows})


def units(args: argparse.Namespace) -> dict[str, Callable[[], Lines]]:
    """`boundary`: the sizes around the largest one that one pass serves, where the form changes."""
    if args.dry_run:
        lists = {"boundary": [1, one_pass.MAX_ROWS // 8 * 8, one_pass.MAX_ROWS // 8 * 8 + 8]}
    else:
        lists = {"padded": decode_graph_sizes(256, True), "unpadded": decode_graph_sizes(64, False)}
    return {name: partial(check, sizes, args) for name, sizes in lists.items()}


class Graph:
    """What was captured; on a CPU the replay is another call."""

    def __init__(self, run: Callable[[], Tensor], device: torch.device) -> None:
        self._run, self._graph = run, torch.cuda.CUDAGraph() if device.type == "cuda" else None
        if self._graph is None:
            self.logits = run()
            return
        with torch.cuda.graph(self._graph):
            self.logits = run()

    def replay(self) -> Tensor:
        if self._graph is None:
            return self._run()
        self._graph.replay()
        return self.logits


def check(sizes: list[int], args: argparse.Namespace) -> Lines:
    """A line for the captures, and one for each replay that is wrong, then one for all of them."""
    vocab, hidden, depth = (101, 32, 2) if args.dry_run else (151936, 2560, 8)
    head = head_of(vocab, hidden, torch.bfloat16, args.device)
    case = make_case(head, max(sizes), depth, 0)
    fifth = torch.arange(max(sizes), device=args.device) % 5 == 4
    case = replace(
        case, uniform=0.5 + 0.4 * fifth.double()
    )  # four of five rows go through the head with the final ones
    state = OnePassState("auto", gpu_backend("triton", args.device), depth - 1, -(-max(sizes) // 16) * 16, args.device)
    graphs, decided = {}, {}
    for size in sorted(sizes, reverse=True):
        forward = partial(forward_of, state, case, size)
        decided[size] = []
        for is_captured in (False, False):
            state.on_graph_warmup(size, is_captured)
            decided[size].append(state.is_one_pass)
            forward(state.is_one_pass)
        _synchronize(args.device)
        state.on_graph_warmup(size, True)
        decided[size].append(state.is_one_pass)
        graphs[size] = Graph(partial(forward, state.is_one_pass), args.device)
    changed = {str(size): forms for size, forms in decided.items() if len(set(forms)) > 1}
    one_pass_sizes = [size for size in sizes if decided[size][-1]]
    about = {
        "sizes": len(sizes),
        "one_pass_sizes": len(one_pass_sizes),
        "largest_one_pass": max(one_pass_sizes, default=0),
    }
    is_fine = not changed and state.fault is None
    yield {"kind": "check", "what": "captures", "ok": is_fine, **about, "changed": changed, "wrong": state.fault}
    errors = {size: replayed(state, case, size, graphs[size]) for size in one_pass_sizes}
    wrong = {str(size): error for size, error in errors.items() if not error <= TOLERANCE}
    largest = max(errors.values(), default=0.0)
    yield {"kind": "check", "what": "replays", "ok": not wrong, **about, "error": largest, "wrong": wrong or None}


def forward_of(state: OnePassState, case: Case, size: int, is_one_pass: bool) -> Tensor:
    """The head of a decode forward of so many rows."""

    def multiply(hidden: Tensor) -> Tensor:
        return hidden @ case.head.weight.T

    hidden = case.hidden[:size]
    return state.through(multiply, hidden, case.head, case.batch_latents) if is_one_pass else multiply(hidden)


def replayed(state: OnePassState, case: Case, size: int, graph: Graph) -> float:
    """Of one row fewer than the graph has, the last being padding: the largest error of a log-sum-exp or a logit."""
    num_rows, weight = max(1, size - 1), case.head.weight.T.float()
    rows: Any = SimpleNamespace(index=None, edited=None, params=first_rows(case.rows, num_rows))
    state.clear()
    state.fill_mask(rows, first_rows(case.mask_inputs, num_rows), num_rows)
    logits = graph.replay().float()
    mask = state.lse_ready[:size]
    if bool(mask[num_rows:].any()) or not bool(mask.any()):
        return float("inf")
    latents = case.batch_latents[:, :size][:, mask].float()
    expected = (latents @ weight).div_(case.rows.temperature[0]).logsumexp(-1)
    error = (state.lse[:, :size][:, mask] - expected).abs().max()
    truth = case.hidden[:size].float() @ weight
    logit_error = ((logits - truth).abs() / (1 + truth.abs())).max()  # bfloat16 rounds a logit by 2^-9 of it
    largest = torch.maximum(error, logit_error).item()
    return largest if largest == largest else float("inf")


def first_rows(rows: Columns, num_rows: int) -> Columns:
    columns = {field.name: getattr(rows, field.name) for field in fields(rows)}
    return replace(rows, **{k: v[:num_rows] for k, v in columns.items() if isinstance(v, Tensor)})


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
