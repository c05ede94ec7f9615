"""Latent Exploration Decoding as in the paper (arXiv 2602.01698): one row at a time, float64, loops.

Read this file to learn the method; every other backend must agree with it.
"""

import math

import torch
from torch import Tensor

from led_sglang.ops.edits import LogitEdits
from led_sglang.ops.types import Head, LedRows, LedStep, StepInputs

Candidates = list[float]  # one probability per candidate, same order everywhere


def led_step(
    final_logits: Tensor,
    latents: Tensor,
    head: Head,
    rows: LedRows,
    inputs: StepInputs,
    edits: LogitEdits | None = None,
) -> LedStep:
    """See `led_sglang.ops.led_step`."""
    if head.all_gather is not None:
        raise ValueError("the reference backend needs the whole head on one rank")
    steps = [decode_row(r, final_logits, latents, head, rows, inputs, edits) for r in range(final_logits.shape[0])]
    return collect(steps, rows.max_top_k, final_logits.device)


def decode_row(
    r: int,
    final_logits: Tensor,
    latents: Tensor,
    head: Head,
    rows: LedRows,
    inputs: StepInputs,
    edits: LogitEdits | None,
) -> dict[str, object]:
    tau = 1.0 if rows.greedy[r] else rows.temperature[r].double().item()
    logits = final_logits[r].double()
    if logits.isnan().any() or not logits.max().isfinite():
        return broken_row()

    # Section 3.1: the final layer's posterior, its confidence c and (Eq. 1) its k most probable tokens.
    posterior = torch.softmax(logits / tau, dim=-1)  # (V,)
    confidence = posterior.max().item()
    candidate_ids = top_candidates(logits, posterior, int(rows.top_k[r]), rows.min_p[r].double().item())
    final = [posterior[i].item() for i in candidate_ids]
    exploit = normalise(final)

    # The coin: explore with probability 1 - c.
    explored = bool(inputs.active[r]) and (not rows.exploit[r] or inputs.coin_uniform[r].item() < 1 - confidence)
    depth, explore, ok = 1, exploit, True
    if explored or (inputs.active[r] and rows.trace[r]):
        layers = [final, *latent_posteriors(r, latents, head, rows, candidate_ids, tau, edits)]  # Eq. 2
        ok = all(math.isfinite(p) for layer in layers for p in layer)
        if ok:
            depth, explore = most_uncertain(layers, bool(rows.normalize_layers[r]))

    branch = explore if explored else exploit
    choice = argmax(branch) if rows.greedy[r] else inverse_cdf(branch, inputs.token_uniform[r].item())
    share = confidence if rows.exploit[r] else 0.0
    led_prob = share * exploit[choice] + (1 - share) * explore[choice]
    return {
        "token_ids": candidate_ids[choice],
        "ok": ok,
        "explored": explored,
        "depth": depth,
        "confidence": confidence,
        "entropy": entropy(explore),
        "candidate_ids": candidate_ids,
        "exploit_probs": exploit,
        "explore_probs": explore,
        "logprob": math.log(led_prob) if led_prob > 0 else -math.inf,
    }


def top_candidates(logits: Tensor, posterior: Tensor, top_k: int, min_p: float) -> list[int]:
    """Eq. 1: the k largest logits, most probable first, without forbidden or improbable ones."""
    ids = logits.topk(min(top_k, len(logits))).indices.tolist()
    floor = min_p * posterior.max()
    return [i for i in ids if logits[i] > -math.inf and posterior[i] >= floor]


def latent_posteriors(
    r: int,
    latents: Tensor,
    head: Head,
    rows: LedRows,
    candidate_ids: list[int],
    tau: float,
    edits: LogitEdits | None,
) -> list[Candidates]:
    """Eq. 2: softmax over the FULL vocabulary in each latent layer, read at the candidates; h^{L-1} first."""
    layers = []
    for j in range(int(rows.depth[r]) - 1):
        hidden = latents[j + int(rows.latent_offset[r]), r]  # (H,)
        if rows.latent_norm[r] and head.final_norm is not None:  # ablation: the paper applies no norm here
            hidden = head.final_norm(hidden[None])[0]
        posterior = layer_posterior(head_logits(hidden.double(), head), tau, edits, r)
        layers.append([posterior[i].item() for i in candidate_ids])
    return layers


def layer_posterior(logits: Tensor, tau: float, edits: LogitEdits | None, r: int) -> Tensor:
    """softmax(logits / tau), (V,). Penalties and bias act on every layer; what they take from one no other gains."""
    total = torch.logsumexp(logits / tau, dim=-1)
    if edits is not None:
        logits = edited(logits, edits, r)
        total = torch.maximum(total, torch.logsumexp(logits / tau, dim=-1))
    return torch.exp(logits / tau - total)


def edited(logits: Tensor, edits: LogitEdits, r: int) -> Tensor:
    """The engine's penalties and bias of row r, token by token: (V,) float64."""
    row_idx, values = r if edits.rows is None else int(edits.rows[r]), logits.tolist()
    for v in range(len(values)):
        if edits.additive is not None:
            values[v] += edits.additive[row_idx, v].item()
        if edits.scaling is not None:
            scale = edits.scaling[row_idx, v].item()
            values[v] = values[v] * scale if values[v] < 0 else values[v] / scale
        if edits.bias is not None:
            values[v] += edits.bias[row_idx, v].item()
    return torch.tensor(values, dtype=torch.float64, device=logits.device)


def head_logits(hidden: Tensor, head: Head) -> Tensor:
    if head.project is not None:
        logits = head.project(hidden[None].to(head.weight.dtype))[0, : head.num_rows].double()
    else:
        logits = head.weight[: head.num_rows].double() @ hidden  # (V,)
    if head.bias is not None:
        logits = logits + head.bias[: head.num_rows].double()
    logits = logits * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def most_uncertain(layers: list[Candidates], normalize_layers: bool) -> tuple[int, Candidates]:
    """Eq. 4 to 6: sums from the final layer backwards, and the one of largest entropy; ties to the smallest depth."""
    if normalize_layers:  # ablation: the paper keeps each layer's scale, which is its confidence
        layers = [normalise(layer) for layer in layers]
    total = [0.0] * len(layers[0])
    aggregates = []
    for layer in layers:  # Eq. 4
        total = [t + p for t, p in zip(total, layer, strict=True)]
        aggregates.append(normalise(total))
    best = argmax([entropy(aggregate) for aggregate in aggregates])  # Eq. 5 and 6
    return best + 1, aggregates[best]


def normalise(weights: Candidates) -> Candidates:
    total = sum(weights)
    return [w / total for w in weights] if total > 0 else weights


def entropy(probs: Candidates) -> float:
    return -sum(p * math.log(p) for p in probs if p > 0)


def argmax(values: list[float]) -> int:
    return values.index(max(values))


def inverse_cdf(probs: Candidates, uniform: float) -> int:
    """The first candidate whose cumulated probability exceeds the uniform: never one of probability zero."""
    target, cumulated = uniform * sum(probs), 0.0
    for i, p in enumerate(probs):
        cumulated += p
        if target < cumulated:
            return i
    return argmax(probs)


def broken_row() -> dict[str, object]:
    return {
        "token_ids": 0,
        "ok": False,
        "explored": False,
        "depth": 1,
        "confidence": math.nan,
        "entropy": math.nan,
        "candidate_ids": [],
        "exploit_probs": [],
        "explore_probs": [],
        "logprob": math.nan,
    }


def collect(steps: list[dict[str, object]], max_top_k: int, device: torch.device) -> LedStep:
    """Rows of Python numbers to the tensors of the contract; candidate lists are padded with zeros to K."""
    dtypes = {"token_ids": torch.int64, "depth": torch.int64, "ok": torch.bool, "explored": torch.bool}
    columns = {}
    for name in ("token_ids", "ok", "explored", "depth", "confidence", "entropy", "logprob"):
        dtype = dtypes.get(name, torch.float32)
        columns[name] = torch.tensor([step[name] for step in steps], dtype=dtype, device=device)
    for name in ("candidate_ids", "exploit_probs", "explore_probs"):
        dtype = torch.int64 if name == "candidate_ids" else torch.float32
        table = torch.zeros(len(steps), max_top_k, dtype=dtype)
        for row, step in zip(table, steps, strict=True):
            values = torch.tensor(step[name], dtype=dtype)
            row[: len(values)] = values
        columns[name] = table.to(device)
    return LedStep(**columns)
