"""The step on a CPU: coin first as in `fused`, with numba's loops in place of some forty small torch calls.

A small model's step is bound by the number of calls, whatever they compute. torch keeps what it is good at, the
products and the exponentials over the vocabulary; everything over k candidates and d layers is two compiled functions.
Sums are float32 and in order, as the listing is written; the cumulated probabilities are float64.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from led_sglang.jit import jit
from led_sglang.ops import host
from led_sglang.ops.fused import CHUNK_ELEMENTS, pick_latents, take_ridden
from led_sglang.ops.head import latent_probs
from led_sglang.ops.noise import uniforms
from led_sglang.ops.one_pass import row_tau
from led_sglang.ops.types import Head, LedRows, LedStep, Noise, Ridden

BLOCK = 32  # log-probabilities compared at once with the smallest candidate: most blocks have none that is larger


def led_step(
    final_logits: Tensor,
    latents: Tensor,
    head: Head,
    rows: LedRows,
    noise: Noise,
    ridden: Ridden | None = None,
) -> LedStep:
    """See `led_sglang.ops.led_step`."""
    if not host.can_look(final_logits.device):
        raise ValueError(f'LED backend "compiled" is for the CPU; this step is on {final_logits.device}')
    tau = row_tau(rows)[:, None]
    ids, logprobs = top_candidates(final_logits, tau, rows.max_top_k)
    step = _Arrays(len(ids), rows)
    asked = (rows.top_k, rows.min_p, rows.exploit, rows.active, rows.full)
    uniform = noise.token.masked_fill(rows.greedy, -1.0) if rows.any_greedy else noise.token  # below all: the arg-max
    _exploit(
        ids, logprobs, *(column.numpy() for column in asked), noise.coin.numpy(), uniform.numpy(),
        step.probs, step.exploit, step.confidence, step.explored, step.needs_latents, step.choice, step.entropy,
    )  # fmt: skip
    index = np.flatnonzero(step.needs_latents)
    if len(index):
        step.explore = step.exploit.copy()
        some = None if len(index) == len(ids) else torch.from_numpy(index)
        layers = layers_at(torch.from_numpy(ids), latents, head, rows, tau, some, ridden)
        _explore(
            index, layers, logprobs, rows.depth.numpy(), rows.normalize_layers.numpy(),
            rows.exploit.numpy(), uniform.numpy(), step.explored, step.exploit, step.probs, step.confidence,
            step.explore, step.depth, step.ok, step.choice, step.entropy, step.depth_entropy, step.led_probs,
        )  # fmt: skip
    return step.result(ids, rows)


def warm() -> None:
    """Compile what a step needs, or read it from numba's cache: before the first request, not during it."""
    row, no = torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool)
    one, logits, (coin, token) = torch.ones(1), torch.zeros(1, 2), uniforms(row, row, row)
    rows = LedRows(~no, 2 * row, 2 * row, one, no, ~no, no, no, 0 * row, 0 * one, ~no, 2, 2, True, False, False)
    led_step(logits, torch.zeros(1, 1, 1), Head(torch.zeros(2, 1), 2), rows, Noise(coin, token))


def top_candidates(final_logits: Tensor, tau: Tensor, top_k: int) -> tuple[Any, Any]:
    """The K most probable tokens of each row and their log p^L: (R, K) int64 and float32; all NaN in a broken row.

    In the log domain a forbidden token stays -inf and an improbable one does not underflow to look like it.
    """
    ids = np.empty((len(final_logits), top_k), np.int64)
    logprobs = np.empty((len(final_logits), top_k), np.float32)
    chunk = max(1, CHUNK_ELEMENTS // max(final_logits.shape[1], 1))
    for start in range(0, len(final_logits), chunk):
        part = slice(start, start + chunk)
        whole = (final_logits[part] / tau[part]).log_softmax(-1)
        _select(whole.numpy(), ids[part], logprobs[part])
    return ids, logprobs


def layers_at(
    ids: Tensor, latents: Tensor, head: Head, rows: LedRows, tau: Tensor, index: Tensor | None, ridden: Ridden | None
) -> Any:
    """p^l at the candidates for the rows of `index` (None = all), (J, N, K) float32: layers L-1, L-2, ..."""
    num_layers = rows.max_depth - 1
    if not num_layers:
        return np.empty((0, len(ids) if index is None else len(index), ids.shape[1]), np.float32)
    hidden = pick_latents(latents, head, rows, index, num_layers)
    if index is not None:
        ids, tau = ids[index], tau[index]
    return latent_probs(hidden, ids, head, tau, take_ridden(ridden, index)).contiguous().numpy()


class _Arrays:
    """What the compiled functions write."""

    def __init__(self, num_rows: int, rows: LedRows) -> None:
        shape, told = (num_rows, rows.max_top_k), num_rows if rows.any_full else 0
        self.probs, self.exploit = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self.explore = self.exploit  # until a row explores
        self.confidence = np.empty(num_rows, np.float32)
        self.explored, self.needs_latents = np.empty(num_rows, np.bool_), np.empty(num_rows, np.bool_)
        self.choice = np.empty(num_rows, np.int64)
        self.depth, self.ok = np.ones(num_rows, np.int64), np.ones(num_rows, np.bool_)
        # Empty where nobody will read them.
        self.entropy, self.led_probs = np.empty(told, np.float32), np.full(told, np.nan, np.float32)
        self.depth_entropy = np.full((told, rows.max_depth), np.nan, np.float32)

    def result(self, ids: Any, rows: LedRows) -> LedStep:
        put = torch.from_numpy
        return LedStep(
            token_ids=put(ids[np.arange(len(ids)), self.choice]),
            ok=put(self.ok & (self.confidence > 0)),
            explored=put(self.explored),
            depth=put(self.depth),
            confidence=put(self.confidence),
            entropy=put(self.entropy) if rows.any_full else None,
            candidate_ids=put(ids),
            exploit_probs=put(self.exploit),
            explore_probs=put(self.explore),
            logprob=put(self.led_probs).log() if rows.any_full else None,
            depth_entropy=put(self.depth_entropy) if rows.any_full else None,
        )


@jit
def _select(whole: Any, ids: Any, logprobs: Any) -> None:
    """whole: (R, V); the K largest of each row and where they are, (R, K) each, are written; ties to the smaller id."""
    vocab_size, top_k = whole.shape[1], ids.shape[1]
    for r in range(len(whole)):
        row, own_ids, best = whole[r], ids[r], logprobs[r]
        best[:] = -np.inf
        own_ids[:] = -1
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
                place = top_k - 1
                while place > 0 and value > best[place - 1]:
                    best[place], own_ids[place] = best[place - 1], own_ids[place - 1]
                    place -= 1
                best[place], own_ids[place] = value, v
        _fill(own_ids, vocab_size)
        if vocab_size and np.isnan(row[0]):  # log_softmax makes all of a broken row NaN
            best[:] = np.nan


@jit
def _fill(ids: Any, vocab_size: int) -> None:
    """Places that no possible token took (-1) get other tokens, and 0 where the vocabulary is too small."""
    token = 0
    for place in range(len(ids)):
        if ids[place] >= 0:
            continue
        is_taken = True
        while is_taken and token < vocab_size:
            is_taken = False
            for other in ids:
                is_taken = is_taken or other == token
            token += is_taken
        ids[place] = token if token < vocab_size else 0
        token += 1


@jit
def _exploit(
    ids: Any, logprobs: Any, top_k: Any, min_p: Any, has_exploit: Any, active: Any, full: Any, coin: Any, uniform: Any,
    probs: Any, exploit: Any, confidence: Any, explored: Any, needs_latents: Any, choice: Any, entropy: Any,
) -> None:  # fmt: skip
    """The final layer: drops candidates in `logprobs`, tosses the coin, and samples as if no row explored."""
    for r in range(len(ids)):
        own = logprobs[r]
        own[top_k[r] :] = -np.inf
        if min_p[r] > 0:
            floor = own[0] + np.log(min_p[r])
            for i in range(len(own)):
                if own[i] < floor:
                    own[i] = -np.inf
        probs[r] = np.exp(own)
        exploit[r] = probs[r] / probs[r].sum()
        confidence[r] = probs[r, 0]
        is_tails = coin[r] + confidence[r] < 1.0
        explored[r] = active[r] and (is_tails or not has_exploit[r])
        needs_latents[r] = explored[r] or (active[r] and full[r])
        choice[r] = _draw(exploit[r], uniform[r])
        if len(entropy):
            entropy[r] = _entropy(exploit[r])


@jit
def _explore(
    index: Any, layers: Any, logprobs: Any, depth: Any, normalize: Any, has_exploit: Any, uniform: Any,
    explored: Any, exploit: Any, probs: Any, confidence: Any,
    explore: Any, best_depth: Any, ok: Any, choice: Any, entropy: Any, depth_entropy: Any, led_probs: Any,
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
            own_entropy = _entropy(aggregate)
            if len(depth_entropy):
                depth_entropy[r, j] = own_entropy
            if not own_entropy <= highest:  # NaN counts as largest
                explore[r] = aggregate
                best_depth[r], highest = j + 1, own_entropy
            if np.isnan(own_entropy):
                break
        ok[r] = highest >= 0
        if explored[r]:
            choice[r] = np.argmax(explore[r]) if uniform[r] < 0 else _draw(explore[r], uniform[r])
        if len(entropy):
            entropy[r] = highest
            weight = confidence[r] * has_exploit[r]
            led_probs[r] = (1 - weight) * explore[r, choice[r]] + weight * exploit[r, choice[r]]


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
