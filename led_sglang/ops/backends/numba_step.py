"""The step on a CPU: coin first as in `fused`, with numba's loops in place of some forty small torch calls.

A small model's step is bound by the number of calls, whatever they compute. torch keeps what it is good at, the
products and the exponentials over the vocabulary; everything over k candidates and d layers is a compiled function.
Sums are float32 and in order, as the listing is written; the cumulated probabilities are float64.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from led_sglang.jit import jit
from led_sglang.ops import arrays
from led_sglang.ops.backends.lm_head import latent_probs, layer_logits, tile_width
from led_sglang.ops.backends.one_pass import row_tau
from led_sglang.ops.backends.torch_step import CHUNK_ELEMENTS, pick_latents, take_known_lse
from led_sglang.ops.edits import LogitEdits, edited_logprobs
from led_sglang.ops.rows import stats
from led_sglang.ops.rows.automaton import ThinkingAutomaton
from led_sglang.ops.rows.filtered_draw import Filters, sample_filtered
from led_sglang.ops.rows.inputs import RowMeta, make_row_inputs, move_states, write_tokens
from led_sglang.ops.rows.noise import uniforms
from led_sglang.ops.types import Head, KnownLse, Latents, LedRows, LedStep, Noise

NO_ROWS = np.empty((0, 1), np.float32)
BLOCK = 32  # log-probabilities compared at once with the smallest candidate: most blocks have none that is larger


def led_step(
    final_logits: Tensor,
    latents: Latents,
    head: Head,
    rows: LedRows,
    noise: Noise,
    known_lse: KnownLse | None = None,
    edits: LogitEdits | None = None,
) -> LedStep:
    """See `led_sglang.ops.led_step`."""
    if not arrays.allows_dynamic_shapes(final_logits.device):
        raise ValueError(f'LED backend "compiled" is for the CPU; this step is on {final_logits.device}')
    requested = _RowArrays.of(rows)
    step = _Arrays(len(final_logits), rows)
    coin_uniform, uniform = noise.arrays("coin_uniform", "token_uniform")
    decide_final(final_logits, requested, rows.arrays("active")[0], rows.draws_inactive, coin_uniform, uniform, step)
    index = np.flatnonzero(step.needs_latents)
    if len(index):
        step.explore = step.exploit.copy()
        hidden = latents() if callable(latents) else latents
        layers = layers_at(step.ids, hidden, head, rows, requested.tau, index, known_lse, edits)
        _explore(
            index, layers, requested.depth, requested.normalize, requested.exploit, requested.greedy, uniform,
            step.ids, step.logprobs, step.explored, step.exploit, step.probs, step.confidence,
            step.explore, step.depth, step.ok, step.token_ids, step.entropy, step.depth_entropy, step.led_probs,
        )  # fmt: skip
    return step.result(rows)


def warm() -> None:
    """Compile what a step needs, or read it from numba's cache: before the first request, not during it."""
    row, no = torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool)
    one, logits, (coin_uniform, token) = torch.ones(1), torch.zeros(1, 2), uniforms(row, row, row)
    rows = LedRows(~no, 2 * row, 2 * row, one, no, ~no, no, no, 0 * row, 0 * one, ~no, 2, 2, True, False, False)
    step = led_step(logits, torch.zeros(1, 1, 1), Head(torch.zeros(2, 1), 2), rows, Noise(coin_uniform, token))
    meta = RowMeta(None, row, row, row, row, no, None, False)
    now, tables = (
        make_row_inputs(meta, 0 * row, row, None, 0 * row, "compiled"),
        ThinkingAutomaton([0], [1], 2).tables("cpu"),
    )
    for token_ids in (torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int32)):
        write_tokens(meta, token_ids, now, step, "compiled")
        move_states(meta, tables, 0 * row, now, token_ids, "compiled")
    for probs in (torch.zeros(2, 2), torch.zeros(2, 3)[:, :2]):  # where the head is padded, the engine's are strided
        sample_filtered(probs, 0 * row, no, token, Filters(row, one, 0 * one), "compiled")
    counters = stats.Counters.zeros(2, 1, row.device)
    for decided in (step, None):
        stats.pack_flags(now, decided, False, 0 * row, counters, "compiled")
    stats.count([0], [0], 1, counters.values.numpy(), counters.method_offset)


class _RowArrays:
    """What the rows asked for, as numpy sees it; made once for as long as the rows stay the same."""

    def __init__(self, rows: LedRows) -> None:
        self.tau = row_tau(rows)[:, None]
        self.depth, self.top_k, self.min_p = rows.depth.numpy(), rows.top_k.numpy(), rows.min_p.numpy()
        self.exploit, self.greedy, self.trace = rows.exploit.numpy(), rows.greedy.numpy(), rows.trace.numpy()
        self.normalize = rows.normalize_layers.numpy()

    @classmethod
    def of(cls, rows: LedRows) -> "_RowArrays":
        if "asked" not in rows.cache:
            rows.cache["asked"] = cls(rows)
        requested: _RowArrays = rows.cache["asked"]
        return requested


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
        else:  # nobody will read them
            self.entropy = self.led_probs = NO_ROWS[:, 0]
            self.depth_entropy = NO_ROWS

    def result(self, rows: LedRows) -> LedStep:
        put = torch.from_numpy
        return LedStep.of_arrays(
            {
                "token_ids": self.token_ids,
                "ok": self.ok,
                "explored": self.explored,
                "depth": self.depth,
                "confidence": self.confidence,
                "candidate_ids": self.ids,
                "exploit_probs": self.exploit,
                "explore_probs": self.explore,
            },
            entropy=put(self.entropy) if rows.any_trace else None,
            logprob=put(self.led_probs).log() if rows.any_trace else None,
            depth_entropy=put(self.depth_entropy) if rows.any_trace else None,
        )


def decide_final(
    final_logits: Tensor,
    requested: _RowArrays,
    active: Any,
    draws_inactive: bool,
    coin_uniform: Any,
    uniform: Any,
    step: _Arrays,
) -> None:
    """The final layer of every row, in chunks where (rows, V) is large.

    In the log domain a forbidden token stays -inf and an improbable one does not underflow to look like it.
    """
    chunk = max(1, CHUNK_ELEMENTS // max(final_logits.shape[1], 1))
    for start in range(0, len(final_logits), chunk):
        logits, tau = final_logits, requested.tau
        if len(final_logits) > chunk:
            logits, tau = logits[start : start + chunk], tau[start : start + chunk]
        whole = (logits / tau).log_softmax(-1)
        _decide_final(
            whole.numpy(), start, requested.top_k, requested.min_p, requested.exploit, requested.greedy,
            requested.trace, active, draws_inactive, coin_uniform, uniform, step.ids, step.logprobs, step.probs,
            step.exploit, step.confidence,
            step.explored, step.needs_latents, step.token_ids, step.depth, step.ok, step.entropy,
        )  # fmt: skip


def layers_at(
    ids: Any,
    latents: Tensor,
    head: Head,
    rows: LedRows,
    tau: Tensor,
    index: Any,
    known_lse: KnownLse | None,
    edits: LogitEdits | None,
) -> Any:
    """p^l at the candidates for the rows of `index`, (J, N, K) float32: layers L-1, L-2, ..."""
    num_layers, num_rows = rows.max_depth - 1, len(index)
    if not num_layers:
        return np.empty((0, num_rows, ids.shape[1]), np.float32)
    some = None if num_rows == len(ids) else torch.from_numpy(index)
    hidden = pick_latents(latents, head, rows, some, num_layers)  # (J, N, H)
    if some is not None:
        tau = tau[some]
    if edits is not None:
        edits = edits.take(some)
    is_whole = head.project is None and known_lse is None and head.all_gather is None
    if not is_whole or head.num_rows > tile_width(num_layers * num_rows, hidden.device, head.is_batch_invariant):
        probs = latent_probs(hidden, torch.from_numpy(ids[index]), head, tau, take_known_lse(known_lse, some), edits)
        return probs.contiguous().numpy()
    logits = layer_logits(hidden, head, 0, head.num_rows)
    logprobs = logits.div_(tau).log_softmax(-1) if edits is None else edited_logprobs(logits, tau, edits)
    layers = np.empty((num_layers, num_rows, ids.shape[1]), np.float32)
    _pick(logprobs.numpy(), ids, index, layers)
    return layers


@jit
def _select(row: Any, ids: Any, best: Any) -> None:
    """row: (V,) log-probabilities; the K largest and where they are, (K,) each, are written; ties to the smaller id."""
    vocab_size, top_k = len(row), len(ids)
    best[:] = -np.inf
    ids[:] = -1
    for start in range(0, vocab_size, BLOCK):
        stop, smallest, num_larger = min(start + BLOCK, vocab_size), best[top_k - 1], 0
        for v in range(start, stop):
            num_larger += row[v] > smallest
        if num_larger == 0:
            continue
        for v in range(start, stop):
            value = row[v]
            if not value > best[top_k - 1]:
                continue
            rank = top_k - 1
            while rank > 0 and value > best[rank - 1]:
                best[rank], ids[rank] = best[rank - 1], ids[rank - 1]
                rank -= 1
            best[rank], ids[rank] = value, v
    _fill(ids, vocab_size)
    if vocab_size and np.isnan(row[0]):  # log_softmax makes all of a broken row NaN
        best[:] = np.nan


@jit
def _fill(ids: Any, vocab_size: int) -> None:
    """Places that no possible token took (-1) get other tokens, and 0 where the vocabulary is too small."""
    token = 0
    for rank in range(len(ids)):
        if ids[rank] >= 0:
            continue
        is_taken = True
        while is_taken and token < vocab_size:
            is_taken = False
            for other in ids:
                is_taken = is_taken or other == token
            token += is_taken
        ids[rank] = token if token < vocab_size else 0
        token += 1


@jit
def _decide_final(
    whole: Any, start: int, top_k: Any, min_p: Any, has_exploit: Any, greedy: Any, trace: Any,
    active: Any, draws_inactive: bool, coin_uniform: Any, uniform: Any, ids: Any, logprobs: Any, probs: Any,
    exploit: Any,
    confidence: Any, explored: Any, needs_latents: Any, token_ids: Any, depth: Any, ok: Any, entropy: Any,
) -> None:  # fmt: skip
    """whole: (n, V) log p^L of the rows from `start` on. Finds and drops candidates, tosses the coin, and samples as if
    no row explored."""
    for i in range(len(whole)):
        r = start + i
        own = logprobs[r]
        _select(whole[i], ids[r], own)
        own[top_k[r] :] = -np.inf
        if min_p[r] > 0:
            floor = own[0] + np.log(min_p[r])
            for k in range(len(own)):
                if own[k] < floor:
                    own[k] = -np.inf
        probs[r] = np.exp(own)
        exploit[r] = probs[r] / probs[r].sum()
        confidence[r] = probs[r, 0]
        is_tails = coin_uniform[r] + confidence[r] < 1.0
        explored[r] = active[r] and (is_tails or not has_exploit[r])
        needs_latents[r] = explored[r] or (active[r] and trace[r])
        if draws_inactive and not active[r] and not greedy[r]:
            token_ids[r] = _draw_token(whole[i], uniform[r])
        else:
            token_ids[r] = ids[r, 0 if greedy[r] else _draw(exploit[r], uniform[r])]
        depth[r], ok[r] = 1, confidence[r] > 0
        if len(entropy):
            entropy[r] = _entropy(exploit[r])


@jit
def _pick(whole: Any, ids: Any, index: Any, layers: Any) -> None:
    """whole: (J, N, V) log p^l of the rows of `index`; p^l at their candidates is written to (J, N, K)."""
    num_layers, num_rows, top_k = layers.shape
    for j in range(num_layers):
        for n in range(num_rows):
            for k in range(top_k):
                layers[j, n, k] = np.exp(whole[j, n, ids[index[n], k]])


@jit
def _explore(
    index: Any, layers: Any, depth: Any, normalize: Any, has_exploit: Any, greedy: Any, uniform: Any,
    ids: Any, logprobs: Any, explored: Any, exploit: Any, probs: Any, confidence: Any,
    explore: Any, best_depth: Any, ok: Any, token_ids: Any, entropy: Any, depth_entropy: Any, led_probs: Any,
) -> None:  # fmt: skip
    """Eq. 4 to 6 for the rows of `index`; layers: (J, N, K)."""
    num_candidates = logprobs.shape[1]
    sums, layer = np.empty(num_candidates, np.float32), np.empty(num_candidates, np.float32)
    aggregate = np.empty(num_candidates, np.float32)
    for n in range(len(index)):
        r = index[n]
        highest = np.float32(-1)
        sums[:] = 0
        for j in range(depth[r]):
            for i in range(num_candidates):
                is_dropped = logprobs[r, i] == -np.inf
                layer[i] = probs[r, i] if j == 0 else np.float32(0) if is_dropped else layers[j - 1, n, i]
            if normalize[r]:
                layer /= max(layer.sum(), np.float32(np.finfo(np.float32).tiny))
            sums += layer
            aggregate[:] = sums / sums.sum()
            row_entropy = _entropy(aggregate)
            if len(depth_entropy):
                depth_entropy[r, j] = row_entropy
            if not row_entropy <= highest:  # NaN counts as largest
                explore[r] = aggregate
                best_depth[r], highest = j + 1, row_entropy
            if np.isnan(row_entropy):
                break
        ok[r] = ok[r] and highest >= 0
        branch = explore[r] if explored[r] else exploit[r]
        choice = np.argmax(branch) if greedy[r] else _draw(branch, uniform[r])
        token_ids[r] = ids[r, choice]
        if len(entropy):
            entropy[r] = highest
            weight = confidence[r] * has_exploit[r]
            led_probs[r] = (1 - weight) * explore[r, choice] + weight * exploit[r, choice]


@jit
def _entropy(probs: Any) -> Any:
    """In nats (Eq. 5); NaN where a probability is."""
    total = np.float32(0)
    for p in probs:
        if p != 0:
            total -= p * np.log(p)
    return total


@jit
def _draw(probs: Any, uniform: float) -> Any:
    """The first candidate whose cumulated probability exceeds the uniform; one of probability zero is never reached."""
    total = 0.0
    for p in probs:
        total += p
    cumulated, choice = 0.0, 0
    for p in probs:
        cumulated += p
        choice += cumulated <= total * uniform
    return min(choice, len(probs) - 1)


@jit
def _draw_token(logprobs: Any, uniform: float) -> Any:
    """(V,) log-probabilities that sum to one: the token at which the cumulated probability exceeds the uniform."""
    cumulated, last = 0.0, 0
    for v in range(len(logprobs)):
        p = np.exp(logprobs[v])
        if p > 0:
            cumulated, last = cumulated + p, v
        if cumulated > uniform:
            break
    return last
