"""What SGLang's sampling masks have to say, worked out from what an answer reports of the distributions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from led_sglang.testing import Reply
from led_sglang.testing.oracle import Array, is_thinking
from tests.server.checkpoints import MARKERS

LEAST = 1e-6
TOLERANCE = 1e-5  # of a logprob, in nats: the same float32 numbers, in another order

Policy = dict[int, float]  # token -> probability; no token of probability 0


def filtered(logprobs: Array, top_k: int = 1 << 30, top_p: float = 1.0, min_p: float = 0.0) -> Policy:
    """The engine's: (V,) log-probabilities after its filters, each of which looks at the whole distribution."""
    probs = np.exp(logprobs.astype(np.float64))
    order = np.argsort(-probs, kind="stable")
    before = probs[order].cumsum() - probs[order]
    is_kept = (
        (np.arange(len(order)) < top_k) & ((before <= top_p) | (top_p == 1)) & (probs[order] >= min_p * probs.max())
    )
    kept = {int(token): float(probs[token]) for token in order[is_kept] if probs[token] > 0}
    return {token: p / sum(kept.values()) for token, p in kept.items()}


def led(meta: Mapping[str, Any], i: int, is_greedy: bool) -> Policy:
    """p_LED of a traced token, the coin summed out; empty where LED did not decide it."""
    ids = meta["led_candidates"][i]
    if ids is None:
        return {}
    exploit, explore = (np.array(meta[key][i]) for key in ("led_exploit", "led_explore"))
    if is_greedy:
        exploit, explore = (np.eye(len(ids))[probs.argmax()] for probs in (exploit, explore))
    share = meta["led_confidence"][i] if meta["led_params"]["exploit"] else 0.0
    probs = share * exploit + (1 - share) * explore
    return {token: float(p) for token, p in zip(ids, probs, strict=True) if p > 0}


def policies(reply: Reply, reported: Sequence[Array]) -> list[Policy]:
    """What each token of a traced request, or of another method's, was drawn from.

    reported: log-probabilities (V,) of every token, as the engine would sample it.
    """
    request, meta = reply.request, reply.meta
    is_greedy, is_soft = request.query.temperature == 0, meta["led_params"]["method"] == "soft_thinking"
    filters: Any = {**request.filters, "top_k": 1} if is_greedy else request.filters
    expected = []
    for i, step in enumerate(reported):
        policy = led(meta, i, is_greedy) if "led_candidates" in meta else {}
        if is_soft and is_thinking(request.prompt_ids + reply.output_ids[:i], *MARKERS):
            policy = {reply.output_ids[i]: 1.0}  # no chance left
        expected.append(policy or filtered(step, **filters))
    return expected


def not_led(meta: Mapping[str, Any], i: int) -> bool:
    return "led_candidates" not in meta or meta["led_candidates"][i] is None


def faults(meta: Mapping[str, Any], output_ids: Sequence[int], expected: Sequence[Policy], mode: str) -> list[str]:
    """Where the masks and logprobs of the tokens are not those of the policies that drew them."""
    masks, reported = meta["output_token_sampling_mask"], meta["output_token_sampling_logprobs"]
    assert len(masks) == len(reported) == len(output_ids) == len(expected) == meta["output_token_sampling_mask_length"]
    found = []
    for i, (token, mask, logprobs, policy) in enumerate(zip(output_ids, masks, reported, expected, strict=True)):
        if token not in mask:
            found.append(f"token {i}: {token} is not in its mask {mask}")
        # The engine's sum before a token so unlikely rounds to one, and `top_p` 1 drops it.
        least = LEAST if not_led(meta, i) else 0.0
        if set(mask) - set(policy) or any(policy[t] > least for t in set(policy) - set(mask)):
            found.append(f"token {i}: mask {mask}, drawn from {policy}")
            continue
        wanted = [math.log(policy[t]) for t in (mask if mode == "support" else [token])]
        errors = np.abs(np.array(logprobs).reshape(-1) - wanted)
        if not (errors <= TOLERANCE).all():
            found.append(f"token {i}: logprobs {logprobs}, should be {wanted}")
    return found
