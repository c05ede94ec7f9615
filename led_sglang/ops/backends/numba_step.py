"""The step on a CPU: coin first as in `torch_step`, with compiled loops in place of some forty small torch calls.

A small model's step is bound by the number of calls, whatever they compute. torch keeps what it is good at, the
products and the exponentials over the vocabulary; everything over k candidates and d layers is a compiled function.
Sums are float32 and in order, as the listing is written; the cumulated probabilities are float64.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from led_sglang.ops.backends import step_loops
from led_sglang.ops.backends.lm_head import is_one_weight, latent_probs, layer_logits, tile_width
from led_sglang.ops.backends.torch_step import CHUNK_ELEMENTS, layers_of, pick_latents
from led_sglang.ops.edits import LogitEdits, edited_logprobs
from led_sglang.ops.rows import tree_loops
from led_sglang.ops.rows.draft_tree import DraftTree
from led_sglang.ops.types import Head, KnownLse, Latents, LedRows, LedStep, StepInputs

NO_ROWS = np.empty((0, 1), np.float32)


def led_step(
    final_logits: Tensor,
    latents: Latents,
    head: Head,
    rows: LedRows,
    inputs: StepInputs,
    known_lse: KnownLse | None = None,
    edits: LogitEdits | None = None,
    draws_inactive: bool = False,
    tree: DraftTree | None = None,
) -> LedStep:
    """See `led_sglang.ops.led_step`."""
    requested, step = rows.arrays, _Arrays(len(final_logits), rows)
    token_uniform = inputs.token_uniform.numpy()
    final_layer(final_logits, rows, inputs, token_uniform, step, draws_inactive)
    if tree is not None:
        nodes = tree.drafts.token_ids.numpy(), tree.parents.numpy()
        tree_loops.prune(*nodes, step.token_ids, inputs.active.numpy(), step.needs_latents, step.ok)
    index = np.flatnonzero(step.needs_latents)
    if len(index):
        step.explore = step.exploit.copy()
        layers = layers_at(step.ids, layers_of(latents, rows), head, rows, index, known_lse, edits)
        step_loops.explore_rows(
            index, layers, requested["depth"], requested["normalize_layers"], requested["exploit"],
            requested["greedy"], token_uniform, step.ids, step.logprobs, step.explored, step.exploit, step.probs,
            step.confidence, step.explore, step.depth, step.ok, step.token_ids, step.entropy, step.depth_entropy,
            step.led_probs,
        )  # fmt: skip
    return step.result(rows)


class _Arrays:
    """What the compiled functions write. Shape letters as in `led_sglang.ops.types`."""

    def __init__(self, num_rows: int, rows: LedRows) -> None:
        num_candidates = rows.max_top_k
        self.ids = np.empty((num_rows, num_candidates), np.int64)
        self.logprobs, self.probs, self.exploit = np.empty((3, num_rows, num_candidates), np.float32)
        self.explore = self.exploit  # until a row explores
        self.confidence = np.empty(num_rows, np.float32)
        self.explored, self.needs_latents, self.ok = np.empty((3, num_rows), np.bool_)
        self.token_ids, self.depth = np.empty((2, num_rows), np.int64)
        if rows.any_trace:
            self.entropy, self.led_probs = np.full((2, num_rows), np.nan, np.float32)
            self.depth_entropy = np.full((num_rows, rows.max_depth), np.nan, np.float32)
        else:  # nothing reads them
            self.entropy = self.led_probs = NO_ROWS[:, 0]
            self.depth_entropy = NO_ROWS

    def result(self, rows: LedRows) -> LedStep:
        put = torch.from_numpy
        exploit = put(self.exploit)
        return LedStep(
            token_ids=put(self.token_ids),
            ok=put(self.ok),
            explored=put(self.explored),
            depth=put(self.depth),
            confidence=put(self.confidence),
            entropy=put(self.entropy) if rows.any_trace else None,
            candidate_ids=put(self.ids),
            exploit_probs=exploit,
            explore_probs=exploit if self.explore is self.exploit else put(self.explore),
            logprob=put(self.led_probs).log() if rows.any_trace else None,
            depth_entropy=put(self.depth_entropy) if rows.any_trace else None,
        )


def final_layer(
    final_logits: Tensor, rows: LedRows, inputs: StepInputs, token_uniform: Any, step: _Arrays, draws_inactive: bool
) -> None:
    """The final layer of every row, in chunks where (rows, V) is large.

    In the log domain a forbidden token stays -inf and an improbable one does not underflow to look like it.
    """
    requested = rows.arrays
    active, coin_uniform = inputs.active.numpy(), inputs.coin_uniform.numpy()
    chunk = max(1, CHUNK_ELEMENTS // max(final_logits.shape[1], 1))
    for start in range(0, len(final_logits), chunk):
        logits, tau = final_logits, requested["tau"]
        if len(final_logits) > chunk:
            logits, tau = logits[start : start + chunk], tau[start : start + chunk]
        whole = (logits / tau).log_softmax(-1)
        step_loops.decide_final(
            whole.numpy(), start, requested["top_k"], requested["min_p"], requested["exploit"], requested["greedy"],
            requested["trace"], active, draws_inactive, coin_uniform, token_uniform, step.ids, step.logprobs,
            step.probs, step.exploit, step.confidence, step.explored, step.needs_latents, step.token_ids, step.depth,
            step.ok, step.entropy,
        )  # fmt: skip


def layers_at(
    ids: Any,
    latents: Tensor,
    head: Head,
    rows: LedRows,
    index: Any,
    known_lse: KnownLse | None,
    edits: LogitEdits | None,
) -> Any:
    """p^l at the candidates for the rows of `index`, (J, N, K) float32: layers L-1, L-2, ..."""
    num_layers, num_rows = rows.max_depth - 1, len(index)
    if not num_layers:
        return np.empty((0, num_rows, ids.shape[1]), np.float32)
    some = None if num_rows == len(ids) else torch.from_numpy(index)
    hidden, tau = pick_latents(latents, head, rows, some, num_layers), rows.arrays["tau"]  # (J, N, H), (R, 1)
    if some is not None:
        tau = tau[some]
    if edits is not None:
        edits = edits.take(some)
    if known_lse is not None:
        known_lse = known_lse.compacted(some)
    is_whole = is_one_weight(head) and known_lse is None
    if not is_whole or head.num_rows > tile_width(num_layers * num_rows, hidden.device, head.is_batch_invariant):
        probs = latent_probs(hidden, torch.from_numpy(ids[index]), head, tau, known_lse, edits)
        return probs.contiguous().numpy()
    logits = layer_logits(hidden, head, 0, head.num_rows)
    logprobs = logits.div_(tau).log_softmax(-1) if edits is None else edited_logprobs(logits, tau, edits)
    layers = np.empty((num_layers, num_rows, ids.shape[1]), np.float32)
    step_loops.pick(logprobs.numpy(), ids, index, layers)
    return layers
