"""The method in plain torch: every row, every depth, full softmax over (D, R, V)."""

import torch
from torch import Tensor

from led_sglang.ops.backends.lm_head import across_ranks, candidate_logits, layer_logits, tile_sums
from led_sglang.ops.edits import LogitEdits, edited_logprobs
from led_sglang.ops.types import Head, LedRows, LedStep, StepInputs

TINY = torch.finfo(torch.float32).tiny  # a layer that gives the candidates nothing adds nothing


def led_step(
    final_logits: Tensor,
    latents: Tensor,
    head: Head,
    rows: LedRows,
    inputs: StepInputs,
    edits: LogitEdits | None = None,
) -> LedStep:
    """See `led_sglang.ops.led_step`."""
    tau = torch.where(rows.greedy, 1.0, rows.temperature)[:, None]  # (R, 1)
    posterior = torch.softmax(final_logits / tau, dim=-1)  # (R, V)
    confidence = posterior.amax(-1) if posterior.numel() else posterior.sum(-1)
    candidate_ids, keep = candidates(final_logits, posterior, confidence, rows)
    final = posterior.gather(1, candidate_ids).where(keep, 0.0)  # (R, K)
    exploit = final / final.sum(-1, keepdim=True)

    explored = inputs.active & (~rows.exploit | (inputs.coin_uniform < 1 - confidence.double()))
    needs_latents = inputs.active & (explored | rows.trace)
    layers = torch.cat([final[None], latent_layers(latents, candidate_ids, head, rows, tau, edits)])  # (J+1, R, K)
    layers = layers.where(keep, 0.0)
    layers = torch.where(rows.normalize_layers[:, None], layers / layers.sum(-1, keepdim=True).clamp_min(TINY), layers)
    sums = layers.cumsum(0)
    aggregates = sums / sums.sum(-1, keepdim=True)  # Eq. 4
    entropies = torch.special.entr(aggregates).sum(-1)  # (J+1, R), Eq. 5
    depths = torch.arange(1, len(layers) + 1, device=rows.depth.device)[:, None]  # (J+1, 1)
    depth = entropies.where(depths <= rows.depth, -1.0).argmax(0) + 1  # Eq. 6
    depth = torch.where(needs_latents, depth, 1)
    picked = (depth - 1)[None, :, None].expand(1, -1, exploit.shape[-1])
    explore = torch.where((depth > 1)[:, None], aggregates.gather(0, picked)[0], exploit)

    branch = torch.where(explored[:, None], explore, exploit)
    choice = torch.where(rows.greedy, branch.argmax(-1), inverse_cdf(branch, inputs.token_uniform))[:, None]
    share = torch.where(rows.exploit, confidence, 0.0)[:, None]
    led_probs = share * exploit + (1 - share) * explore
    is_finite = layers.isfinite().all(-1) | (depths > rows.depth) | ~needs_latents  # (J+1, R)
    return LedStep(
        token_ids=candidate_ids.gather(1, choice)[:, 0],
        ok=is_finite.all(0) & (confidence > 0),
        explored=explored,
        depth=depth,
        confidence=confidence,
        entropy=torch.special.entr(explore).sum(-1),
        candidate_ids=candidate_ids,
        exploit_probs=exploit,
        explore_probs=explore,
        logprob=led_probs.gather(1, choice)[:, 0].log(),
        depth_entropy=entropies.t(),
    )


def candidates(final_logits: Tensor, posterior: Tensor, confidence: Tensor, rows: LedRows) -> tuple[Tensor, Tensor]:
    """Eq. 1: ids (R, K), most probable first, and which of them the row may use."""
    num_columns = min(rows.max_top_k, final_logits.shape[-1])
    top_logits, ids = final_logits.topk(num_columns, dim=-1)
    keep = top_logits > -torch.inf
    keep &= torch.arange(num_columns, device=ids.device) < rows.top_k[:, None]
    keep &= posterior.gather(1, ids) >= (rows.min_p * confidence)[:, None]
    padding = (0, rows.max_top_k - num_columns)
    return torch.nn.functional.pad(ids, padding), torch.nn.functional.pad(keep, padding)


def latent_layers(
    latents: Tensor, candidate_ids: Tensor, head: Head, rows: LedRows, tau: Tensor, edits: LogitEdits | None
) -> Tensor:
    """Eq. 2: (J, R, K) probabilities of the candidates in the layers h^{L-1}, h^{L-2}, ..."""
    num_layers = rows.max_depth - 1
    if num_layers == 0 or candidate_ids.shape[0] == 0:
        return tau.new_zeros(num_layers, *candidate_ids.shape)
    layer_ids = torch.arange(num_layers, device=latents.device)[:, None] + rows.latent_offset  # (J, R)
    layer_ids = layer_ids.clamp(max=len(latents) - 1)
    hidden = latents[layer_ids, torch.arange(latents.shape[1], device=latents.device)]  # (J, R, H)
    if head.final_norm is not None and rows.any_norm:
        normed = head.final_norm(hidden.flatten(0, 1)).view_as(hidden)
        hidden = torch.where(rows.latent_norm[:, None], normed, hidden)
    logits = layer_logits(hidden, head, 0, head.num_rows)  # (J, R, V_shard)
    if head.all_gather is None:
        probs = torch.softmax(logits / tau, -1) if edits is None else edited_logprobs(logits, tau, edits).exp()
        return probs.gather(-1, candidate_ids.clamp(max=head.num_rows - 1).expand(num_layers, -1, -1))
    local_logits = candidate_logits(hidden, candidate_ids, head, tau, edits)
    lse, all_logits = across_ranks(tile_sums(logits, tau, edits, head.first_id), local_logits, head)
    if edits is not None:
        lse = lse.amax(0)
    return (all_logits - lse[..., None]).exp()


def inverse_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The first candidate whose cumulated probability exceeds the uniform: (R, K), (R,) -> (R,)."""
    cumulated = probs.cumsum(-1, dtype=torch.float64)
    target = uniforms[:, None] * cumulated[:, -1:]
    return (cumulated <= target).sum(-1).clamp(max=probs.shape[-1] - 1)
