"""DoLa, Confident Decoding, SLED and Soft Thinking as in their papers: one row at a time, float64, loops.

Read this file to learn the methods; `dola`, `confident`, `sled` and `soft_thinking` must agree with it. Whole heads
only.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from led_sglang.ops.reference import argmax, entropy, head_logits, normalise
from led_sglang.ops.types import Head

Logits = list[float]  # one per vocabulary entry
Edit = Callable[[Logits], Logits]  # the engine's penalties and bias of a row: `reference.edited`
SMALLEST_UNIFORM = 2.0**-53


def dola_row(
    final: Logits,
    layers: list[Tensor],
    candidates: list[bool],
    relative_top: float,
    head: Head,
    unedited: Logits | None = None,
    edit: Edit | None = None,
) -> tuple[Logits, int]:
    """DoLa, arXiv 2309.03883, section 2. `layers` are un-normed streams (H,). (logits, premature layer or -1).

    `final` = edit(plain): the layers are compared and contrasted without the edits, the contrast is edited.
    """
    unedited = final if unedited is None else forbid(unedited, final)
    mature = softmax(unedited)  # q_N
    if mature is None:
        return final, -1
    # Dynamic premature layer selection: M = argmax over the candidate set J of d(q_N, q_j), d = JSD.
    premature: dict[int, list[float]] = {}
    for e in range(len(layers)):
        if candidates[e]:
            early = softmax(forbid(head_logits(layers[e].double(), head).tolist(), final))  # q_j, no final norm
            if early is None:
                return final, -1
            premature[e] = early
    if not premature:
        return final, -1
    order = list(premature)
    chosen = order[argmax([jensen_shannon(mature, premature[e]) for e in order])]
    # Contrasting the predictions: F = log q_N / q_M inside V_head, the adaptive plausibility constraint; -inf outside.
    base = log_softmax(forbid(head_logits(layers[chosen].double(), head).tolist(), final))
    top, limited = log_softmax(unedited), log_softmax(final)
    floor = max(limited) + (math.log(relative_top) if relative_top > 0 else -math.inf)
    contrast = [t - b if t > -math.inf else -math.inf for t, b in zip(top, base, strict=True)]
    contrast = contrast if edit is None else edit(contrast)
    contrast = [c if t > -math.inf and t >= floor else -math.inf for c, t in zip(contrast, limited, strict=True)]
    return (contrast, chosen) if math.isfinite(max(contrast)) else (final, -1)


def confident_row(
    final: Logits,
    latents: list[Tensor],
    num_layers: int,
    head: Head,
    unedited: Logits | None = None,
    edit: Edit | None = None,
    select_method: str = "trough",
    keeps_final: bool = False,
) -> tuple[Logits, int]:
    """Confident Decoding, arXiv 2606.21906: entropy-guided backward search. (logits, layers back from the final).

    `final` = edit(plain): layers are compared without the edits, the chosen one's logits are edited.
    """
    logits = [final if unedited is None else forbid(unedited, final)]
    for latent in latents[: num_layers - 1]:  # h^{L-1}, h^{L-2}, ...
        hidden = latent if head.final_norm is None else head.final_norm(latent[None])[0]
        logits.append(forbid(head_logits(hidden.double(), head).tolist(), final))
    posteriors = [softmax(layer) for layer in logits]
    entropies = [entropy(p) for p in posteriors if p is not None]
    if len(entropies) < len(posteriors) or keeps_final:
        return final, 0
    chosen = 0
    while chosen + 1 < len(entropies) and entropies[chosen + 1] < entropies[chosen]:
        chosen += 1  # the way back falls
    base, _, shift = select_method.partition("-")  # "trough-m1": one layer shallower; "last-m4": four from the last
    offset = int(shift[1:] or 0) * (-1 if shift.startswith("p") else 1)
    chosen = min(max((chosen if base == "trough" else 0) + offset, 0), len(logits) - 1)
    if chosen == 0:
        return final, 0
    return (logits[chosen] if edit is None else edit(logits[chosen])), chosen


def sled_row(
    final: Logits,
    layers: list[Tensor],
    evolution_rate: float,
    evolution_scale: int,
    head: Head,
    unedited: Logits | None = None,
    edit: Edit | None = None,
) -> tuple[Logits, bool]:
    """SLED, arXiv 2411.02433, algorithm 1. `layers` are un-normed streams (H,). (logits, whether they were evolved).

    `final` = edit(plain): layers are compared with the plain logits, the evolved ones are edited.
    """
    engine_logits = final if unedited is None else forbid(unedited, final)
    posterior = softmax(engine_logits)
    if posterior is None or softmax(final) is None:
        return final, False
    allowed = [i for i, z in enumerate(final) if z > -math.inf]
    candidates = sorted(allowed, key=lambda i: -final[i])[:evolution_scale]
    evidence = dict.fromkeys(candidates, 0.0)
    for layer in layers:
        early = forbid(head_logits(layer.double(), head).tolist(), final)  # no final norm
        probs = softmax(early)
        if probs is None or not all(math.isfinite(early[i]) for i in allowed):
            return final, False
        change = [early[i] - engine_logits[i] for i in allowed]
        for i in candidates:
            # The gradient of KL(onehot(i), P_n) in the layer's logits; q_i - 1 as what the others have.
            gradient = [probs[j] if j != i else -sum(probs[o] for o in allowed if o != i) for j in allowed]
            evidence[i] += max(cosine(change, gradient), 0.0) ** 2
    total = sum(evidence.values())
    if total == 0:
        return final, False
    evolved = [-math.inf] * len(final)
    for i in candidates:
        evolved[i] = engine_logits[i] - evolution_rate * (posterior[i] - evidence[i] / total)
    evolved = evolved if edit is None else edit(evolved)
    return (evolved, True) if math.isfinite(max(evolved)) else (final, False)


def cosine(a: list[float], b: list[float]) -> float:
    """0 where one of them is zero."""
    length = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0


def soft_row(
    final: Logits,
    tau: float,
    max_topk: int,
    gumbel_temperature: float,
    uniforms: list[float] | None,
    filters: tuple[int, float, float] | None = None,
) -> tuple[list[int], list[float], float] | None:
    """Soft Thinking, arXiv 2505.15778; Gumbel-softmax, 2508.03440. (ids, weights, entropy); None where it is broken.

    `filters`: (top-k, top-p, min-p) of the request, where they act before the mixture.
    """
    posterior = softmax([z / tau for z in final])
    if posterior is None:
        return None
    ids = torch.tensor(posterior, dtype=torch.float64).topk(min(max_topk, len(posterior))).indices.tolist()
    ids = [i for i in ids if posterior[i] > 0]
    if filters is not None:
        ids = filtered(posterior, ids, *filters)
    weights = normalise([posterior[i] for i in ids])  # the concept token: top-k, renormalised
    if uniforms is not None and gumbel_temperature > 0:
        noisy = [(math.log(posterior[i]) + gumbel(u)) / gumbel_temperature for i, u in zip(ids, uniforms, strict=False)]
        order = sorted(range(len(ids)), key=lambda j: -noisy[j])
        perturbed = softmax([noisy[j] for j in order])
        assert perturbed is not None
        ids, weights = [ids[j] for j in order], perturbed
    return ids, weights, entropy(posterior)


def filtered(posterior: list[float], ids: list[int], top_k: int, top_p: float, min_p: float) -> list[int]:
    """Of `ids`, heaviest first, those that top-k, then top-p on what that leaves, then min-p keep."""
    left = sorted(posterior, reverse=True)[:top_k]
    kept = []
    for rank, i in enumerate(ids):
        before = sum(left[:rank]) / sum(left)
        is_kept = rank < top_k and before < top_p and posterior[i] >= min_p * left[0]
        kept += [i] if is_kept or rank == 0 else []
    return kept


def gumbel(uniform: float) -> float:
    return -math.log(-math.log(min(max(uniform, SMALLEST_UNIFORM), 1 - SMALLEST_UNIFORM)))


def cold_stop_row(entropies: list[float], threshold: float, length: int) -> int | None:
    """Cold stop, arXiv 2505.15778: the step at which `length` low-entropy steps in a row are complete."""
    count = 0
    for step, value in enumerate(entropies):
        count = count + 1 if value < threshold else 0
        if count >= length:
            return step
    return None


def forbid(logits: Logits, final: Logits) -> Logits:
    """What a grammar forbids in the final layer is forbidden in every layer."""
    return [-math.inf if f == -math.inf else z for z, f in zip(logits, final, strict=True)]


def log_softmax(logits: Logits) -> Logits:
    top = max(logits)
    total = top + math.log(sum(math.exp(z - top) for z in logits))
    return [z - total for z in logits]


def softmax(logits: Logits) -> list[float] | None:
    """None where the row is broken: NaN, +inf, or every token forbidden."""
    if any(math.isnan(z) for z in logits) or not math.isfinite(max(logits)):
        return None
    return [math.exp(z) for z in log_softmax(logits)]


def jensen_shannon(p: list[float], q: list[float]) -> float:
    """JSD(p, q) = KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2."""
    average = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (divergence(p, average) + divergence(q, average)) / 2


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
