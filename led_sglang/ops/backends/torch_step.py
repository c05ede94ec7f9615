"""The step in torch: coin first, then only the rows that need their latents, streamed through the head.

On a small model on CPU a step is bounded by the number of torch calls (1 to 3 us each), so this file trades a little
plainness for fewer of them; `tests/unit/ops/backends/test_op_count.py` counts.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from led_sglang.ops.backends.lm_head import latent_probs, sum_of
from led_sglang.ops.edits import LogitEdits
from led_sglang.ops.rows.draft_tree import DraftTree, reachable
from led_sglang.ops.types import Head, KnownLse, Latents, LedRows, LedStep, StepInputs

CHUNK_ELEMENTS = 1 << 19  # final logits scaled at once on CPU: 2 MiB
FIXED_CHUNK_ELEMENTS = 6 << 20  # elsewhere: 24 MiB
TINY = torch.finfo(torch.float32).tiny  # a layer that gives the candidates nothing adds nothing


def log_masses(final_logits: Tensor, peak: Tensor, tau: Tensor) -> Tensor:
    """log sum_v exp((logit_v - peak) / tau): (R, V), (R, 1), (R, 1) -> (R, 1). Some rows at a time: no (R, V) copy."""
    chunk = max(1, FIXED_CHUNK_ELEMENTS // max(final_logits.shape[1], 1))
    columns = torch.split(final_logits, chunk), torch.split(peak, chunk), torch.split(tau, chunk)
    masses = [(z.float() - p).div_(t).exp_().sum(-1, keepdim=True) for z, p, t in zip(*columns, strict=True)]
    return (masses[0] if len(masses) == 1 else torch.cat(masses)).log_()


@dataclass(frozen=True)
class FinalLayer:
    """What the final layer gives of each row."""

    tau: Tensor  # (R, 1)
    candidate_ids: Tensor  # (R, K), most probable first
    logprobs: Tensor  # (R, K), log p^L at the candidates, -inf where the row may not use it
    probs: Tensor  # (R, K), exp(logprobs)
    confidence: Tensor  # (R,), NaN where the row is broken


@dataclass(frozen=True)
class Explore:
    """The explore branch of the rows that computed it."""

    probs: Tensor  # (N, K)
    depth: Tensor  # (N,)
    ok: Tensor  # (N,) bool
    entropy: Tensor | None  # (N,); None: no row asked for `trace`
    depth_entropy: Tensor | None  # (N, J+1), the same


def led_step(
    final_logits: Tensor,
    latents: Tensor,
    head: Head,
    rows: LedRows,
    inputs: StepInputs,
    known_lse: KnownLse | None = None,
    edits: LogitEdits | None = None,
    allows_dynamic_shapes: bool = False,
    tree: DraftTree | None = None,
) -> LedStep:
    """See `led_sglang.ops.led_step`."""
    final = final_layer(final_logits, rows, allows_dynamic_shapes)
    exploit = final.probs / sum_of(final.probs)
    # `a >= b` on booleans is `a or not b`: tails explores, and so does a row without the exploit branch.
    explored = (inputs.coin_uniform + final.confidence < 1.0).ge(rows.exploit).logical_and(inputs.active)
    needs_latents = explored | (rows.trace & inputs.active) if rows.any_trace else explored
    if tree is not None:
        chosen = final.candidate_ids.gather(1, choose(exploit, rows, inputs)).squeeze(1)
        is_reached = reachable(tree, chosen, needs_latents | ~inputs.active | ~(final.confidence > 0))
        needs_latents = needs_latents & is_reached
        final = replace(final, confidence=final.confidence.where(is_reached, torch.nan))  # the others are not ok
    if not allows_dynamic_shapes:
        explore = explore_branch(final, latents, head, rows, None, known_lse, edits)
        explore = where_needed(explore, needs_latents, exploit)
    elif needs_latents.any():
        explore = explore_rows(final, exploit, needs_latents, latents, head, rows, known_lse, edits)
    else:
        return exploit_step(final, exploit, explored, rows, inputs)
    return mixed_step(final, exploit, explored, explore, rows, inputs)


def layers_of(latents: Latents, rows: LedRows) -> Tensor:
    """(D, R, H). Raises ValueError for fewer layers than the deepest row needs."""
    layers = latents() if callable(latents) else latents
    if len(layers) < rows.max_depth - 1:
        raise ValueError(f"depth {rows.max_depth} needs {rows.max_depth - 1} latent layers, got {len(layers)}")
    return layers


def final_layer(final_logits: Tensor, rows: LedRows, allows_dynamic_shapes: bool) -> FinalLayer:
    tau = rows.tau[:, None]
    num_columns = min(rows.max_top_k, final_logits.shape[-1])
    if allows_dynamic_shapes:
        logprobs, ids = top_logprobs(final_logits, tau, num_columns)
    else:
        logprobs, ids = top_logprobs_fixed(final_logits, tau, num_columns)
    if num_columns < rows.max_top_k:
        padding = (0, rows.max_top_k - num_columns)
        logprobs, ids = F.pad(logprobs, padding, value=-torch.inf), F.pad(ids, padding)
    if rows.any_min_p:
        floor = logprobs[:, :1] + rows.min_p.log()[:, None]
        logprobs = logprobs.masked_fill(logprobs < floor, -torch.inf)
    if rows.mixed_top_k:
        beyond = torch.arange(rows.max_top_k, device=ids.device) >= rows.top_k[:, None]
        logprobs = logprobs.masked_fill(beyond, -torch.inf)
    probs = logprobs.exp()
    return FinalLayer(tau, ids, logprobs, probs, probs[:, 0])


def top_logprobs(final_logits: Tensor, tau: Tensor, num_columns: int) -> tuple[Tensor, Tensor]:
    """The largest log p^L of each row and their ids, (R, K) each; all NaN in a row that is broken.

    In the log domain a forbidden token stays -inf and an improbable one does not underflow to look like it.
    """
    num_rows, vocab_size = final_logits.shape
    chunk = max(1, CHUNK_ELEMENTS // max(vocab_size, 1))
    if num_rows <= chunk:
        logprobs, ids = (final_logits / tau).log_softmax(-1).topk(num_columns, dim=-1)
        return logprobs, ids
    parts = [
        top_logprobs(logits, taus, num_columns)
        for logits, taus in zip(torch.split(final_logits, chunk), torch.split(tau, chunk), strict=True)
    ]
    logprobs, ids = (torch.cat(column) for column in zip(*parts, strict=True))
    return logprobs, ids


def top_logprobs_fixed(final_logits: Tensor, tau: Tensor, num_columns: int) -> tuple[Tensor, Tensor]:
    """The same without a copy of the logits: no temperature changes their order. A broken row is all NaN here too.

    NaN counts as largest, and the largest minus itself is NaN where it is infinite.
    """
    logits, ids = final_logits.topk(num_columns, dim=-1)
    logits, peak = logits.float(), logits[:, :1].float()
    return (logits - peak).div_(tau) - log_masses(final_logits, peak, tau), ids


def exploit_step(final: FinalLayer, exploit: Tensor, explored: Tensor, rows: LedRows, inputs: StepInputs) -> LedStep:
    """No row needs its latents: the whole batch samples the final layer's candidates."""
    uniform = inputs.token_uniform
    choice = inverse_cdf(exploit, uniform.masked_fill(rows.greedy, -1.0) if rows.any_greedy else uniform)  # -1: arg-max
    return LedStep(
        token_ids=final.candidate_ids.gather(1, choice).squeeze(1),
        ok=final.confidence > 0,
        explored=explored,
        depth=torch.ones_like(rows.depth),
        confidence=final.confidence,
        entropy=entropy_of(exploit) if rows.any_trace else None,
        candidate_ids=final.candidate_ids,
        exploit_probs=exploit,
        explore_probs=exploit,
        logprob=torch.full_like(final.confidence, torch.nan) if rows.any_trace else None,
    )


def entropy_of(probs: Tensor) -> Tensor:
    """Of each distribution along the last axis, in nats (Eq. 5)."""
    return sum_of(torch.special.entr(probs)).squeeze(-1)


def explore_rows(
    final: FinalLayer,
    exploit: Tensor,
    needs_latents: Tensor,
    latents: Tensor,
    head: Head,
    rows: LedRows,
    known_lse: KnownLse | None,
    edits: LogitEdits | None,
) -> Explore:
    """The explore branch where it is needed, the exploit branch elsewhere; shapes depend on how many rows need it."""
    index = needs_latents.nonzero().squeeze(1)
    some = None if len(index) == len(needs_latents) else index
    if known_lse is not None:
        known_lse = known_lse.compacted(some)
    if some is None:
        return explore_branch(final, latents, head, rows, None, known_lse, edits)
    part = explore_branch(final, latents, head, rows, index, known_lse, edits)
    return Explore(
        exploit.index_copy(0, index, part.probs),
        torch.ones_like(rows.depth).index_copy_(0, index, part.depth),
        torch.ones_like(needs_latents).index_copy_(0, index, part.ok),
        None if part.entropy is None else entropy_of(exploit).index_copy_(0, index, part.entropy),
        _spread(part.depth_entropy, index, len(exploit)),
    )


def _spread(values: Tensor | None, index: Tensor, num_rows: int) -> Tensor | None:
    if values is None:
        return None
    return values.new_full((num_rows, values.shape[1]), torch.nan).index_copy_(0, index, values)


def where_needed(explore: Explore, needs_latents: Tensor, exploit: Tensor) -> Explore:
    return Explore(
        explore.probs.where(needs_latents[:, None], exploit),
        explore.depth.where(needs_latents, 1),
        explore.ok | ~needs_latents,
        None if explore.entropy is None else explore.entropy.where(needs_latents, entropy_of(exploit)),
        explore.depth_entropy,
    )


def explore_branch(
    final: FinalLayer,
    latents: Tensor,
    head: Head,
    rows: LedRows,
    index: Tensor | None,
    known_lse: KnownLse | None,
    edits: LogitEdits | None,
) -> Explore:
    """Eq. 2 and 4 to 6 for the rows of `index` (None = all), of which known_lse is."""

    def take(tensor: Tensor) -> Tensor:
        return tensor if index is None else tensor[index]

    num_layers = rows.max_depth - 1
    is_dropped = take(final.logprobs) == -torch.inf
    layers = take(final.probs)[None]  # (1, N, K)
    if num_layers:
        hidden = pick_latents(latents, head, rows, index, num_layers)
        some = None if edits is None else edits.take(index)
        latent = latent_probs(hidden, take(final.candidate_ids), head, take(final.tau), known_lse, some)
        layers = torch.cat([layers, latent]).masked_fill_(is_dropped, 0.0)  # (J+1, N, K)
    if rows.any_normalize:
        normalized = layers / sum_of(layers).clamp_min(TINY)
        layers = torch.where(take(rows.normalize_layers)[:, None], normalized, layers)
    sums = layers.cumsum(0)
    aggregates = sums / sum_of(sums)  # Eq. 4
    entropies = entropy_of(aggregates)  # (J+1, N)
    if rows.mixed_depth:
        is_beyond = torch.arange(num_layers + 1, device=entropies.device)[:, None] >= take(rows.depth)  # (J+1, N)
        entropies = entropies.masked_fill(is_beyond, -1.0)
    entropy, best = entropies.max(0)  # Eq. 6; NaN counts as largest
    probs = aggregates.gather(0, best[None, :, None].expand(1, -1, rows.max_top_k)).squeeze(0)
    reported = (entropy, entropies.t()) if rows.any_trace else (None, None)
    return Explore(probs, best + 1, entropy >= 0, *reported)


def pick_latents(latents: Tensor, head: Head, rows: LedRows, index: Tensor | None, num_layers: int) -> Tensor:
    """(D, R, H) -> (J, N, H): the layers h^{L-1}, h^{L-2}, ... of each row, one earlier where `latent_offset` is 1."""
    if not rows.any_offset:  # D alone does not say: a row of full depth may sit beside one with an offset
        hidden = latents[:num_layers] if index is None else latents[:num_layers].index_select(1, index)
    else:
        row_ids = torch.arange(latents.shape[1], device=latents.device) if index is None else index
        layer_ids = torch.arange(num_layers, device=latents.device)[:, None] + rows.latent_offset[row_ids]
        hidden = latents[layer_ids.clamp_max(latents.shape[0] - 1), row_ids]
    if head.final_norm is None or not rows.any_norm:
        return hidden
    normed = head.final_norm(hidden.flatten(0, 1)).view_as(hidden)
    if rows.all_norm:
        return normed
    use_norm = rows.latent_norm if index is None else rows.latent_norm[index]
    return torch.where(use_norm[:, None], normed, hidden)


def mixed_step(
    final: FinalLayer, exploit: Tensor, explored: Tensor, explore: Explore, rows: LedRows, inputs: StepInputs
) -> LedStep:
    branch = torch.where(explored[:, None], explore.probs, exploit)
    choice = choose(branch, rows, inputs)
    logprob = None
    if rows.any_trace:
        led_probs = torch.lerp(explore.probs, exploit, (final.confidence * rows.exploit)[:, None])
        logprob = led_probs.gather(1, choice).squeeze(1).log()
    return LedStep(
        token_ids=final.candidate_ids.gather(1, choice).squeeze(1),
        ok=explore.ok & (final.confidence > 0),
        explored=explored,
        depth=explore.depth,
        confidence=final.confidence,
        entropy=explore.entropy,
        candidate_ids=final.candidate_ids,
        exploit_probs=exploit,
        explore_probs=explore.probs,
        logprob=logprob,
        depth_entropy=explore.depth_entropy,
    )


def choose(branch: Tensor, rows: LedRows, inputs: StepInputs) -> Tensor:
    """The candidate of each row's token: (R, K) -> (R, 1)."""
    choice = inverse_cdf(branch, inputs.token_uniform)
    if rows.any_greedy:
        choice = torch.where(rows.greedy[:, None], branch.argmax(-1, keepdim=True), choice)
    return choice


def inverse_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The first candidate whose cumulated probability exceeds the uniform: (R, K), (R,) -> (R, 1).

    In float64 `u * total < total` for every u < 1, so a candidate of probability zero is never reached.
    """
    cumulated = probs.cumsum(-1, dtype=torch.float64)
    return (cumulated <= cumulated[:, -1:] * uniforms[:, None]).sum(-1, keepdim=True)
