"""What `led_sglang.ops.backends.numba_step` does over k candidates and d layers, compiled: one call for ten of torch.

The loops take their columns one by one, since numba knows no struct of arrays that costs as little to hand over.
"""

from typing import Any

import numpy as np

from led_sglang.jit import jit

BLOCK = 32  # log-probabilities compared at once with the smallest candidate: most blocks have none that is larger


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
def decide_final(
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
def pick(whole: Any, ids: Any, index: Any, layers: Any) -> None:
    """whole: (J, N, V) log p^l of the rows of `index`; p^l at their candidates is written to (J, N, K)."""
    num_layers, num_rows, top_k = layers.shape
    for j in range(num_layers):
        for n in range(num_rows):
            for k in range(top_k):
                layers[j, n, k] = np.exp(whole[j, n, ids[index[n], k]])


@jit
def explore_rows(
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
