"""What the method needs of the LM head for a latent row: a log-sum-exp and the logits of k candidates."""

import torch
import torch.nn.functional as F
from torch import Tensor

from led_sglang.ops import host
from led_sglang.ops.types import Head, Ridden

TILE_ELEMENTS = 1 << 17  # float32 logits held at once on CPU: 512 KiB stays in the second-level cache
FIXED_TILE_ELEMENTS = 4 << 20  # elsewhere: 10 bytes each, with the half-precision product and exp's copy; 40 MiB
CANDIDATE_ELEMENTS = 1 << 22  # of the candidates' head rows held at once: 16 MiB, and half of it again to widen them


def tile_elements(device: torch.device) -> int:
    return TILE_ELEMENTS if host.can_look(device) else FIXED_TILE_ELEMENTS


def tile_width(num_latents: int, device: torch.device) -> int:
    return max(512, tile_elements(device) // max(num_latents, 1) // 512 * 512)


def finish_logits(logits: Tensor, head: Head, tau: Tensor) -> Tensor:
    """Head scale, soft cap and temperature; works in place on a float32 tensor that the caller owns."""
    if head.scale != 1.0:
        logits.mul_(head.scale)
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    return logits.div_(tau)


def tile_logits(latents: Tensor, head: Head, tau: Tensor, start: int, stop: int) -> Tensor:
    """(..., H) latents and their temperatures to (..., stop - start) float32 logits over tau, which the caller owns."""
    if head.project is not None:
        raw = head.project(latents.flatten(0, -2))[:, start:stop].view(*latents.shape[:-1], stop - start)
        return finish_logits(raw.to(torch.float32, copy=True), head, tau)
    bias = None if head.bias is None else head.bias[start:stop]
    return finish_logits(F.linear(latents, head.weight[start:stop], bias).float(), head, tau)


def log_normalizers(latents: Tensor, head: Head, tau: Tensor) -> Tensor:
    """log sum_v exp(logit_v / tau) over this rank's rows, streamed over vocabulary tiles: (N, H), (N, 1) -> (N,)."""
    if head.project is not None:
        return engine_sums(latents, None, head, tau)[0]
    width = tile_width(latents.shape[0], latents.device)
    sums = [
        tile_logits(latents, head, tau, start, min(start + width, head.num_rows)).logsumexp(-1)
        for start in range(0, head.num_rows, width)
    ]
    if not sums:  # a rank that holds nothing but padding
        return tau.new_full(latents.shape[:1], -torch.inf)
    return sums[0] if len(sums) == 1 else torch.stack(sums).logsumexp(0)


def local_candidates(candidate_ids: Tensor, head: Head) -> Tensor:
    """This rank's row of each candidate; some valid row for another rank's."""
    return (candidate_ids - head.first_id).clamp(0, max(head.num_rows - 1, 0))


def candidate_logits(latents: Tensor, candidate_ids: Tensor, head: Head, tau: Tensor) -> Tensor:
    """(J, N, H), (N, K), (N, 1) -> (J, N, K) float32 logits over tau; 0 for candidates of another rank."""
    chunk = max(1, CANDIDATE_ELEMENTS // max(candidate_ids.shape[1] * latents.shape[2], 1))
    if len(candidate_ids) > chunk:
        columns = torch.split(latents, chunk, 1), torch.split(candidate_ids, chunk), torch.split(tau, chunk)
        return torch.cat([candidate_logits(h, ids, head, t) for h, ids, t in zip(*columns, strict=True)], 1)
    if head.project is not None:
        num_layers = len(latents)
        ids, taus = candidate_ids.repeat(num_layers, 1), tau.repeat(num_layers, 1)
        return engine_sums(latents.flatten(0, 1), ids, head, taus)[1].view(num_layers, *candidate_ids.shape)
    local_ids = local_candidates(candidate_ids, head)
    directions = head.weight[local_ids].float()  # (N, K, H)
    logits = torch.bmm(directions, latents.float().permute(1, 2, 0)).permute(2, 0, 1)  # (J, N, K)
    if head.bias is not None:
        logits = logits + head.bias[local_ids].float()
    return only_local(finish_logits(logits, head, tau), candidate_ids, head)


def only_local(logits: Tensor, candidate_ids: Tensor, head: Head) -> Tensor:
    if head.all_gather is None:
        return logits
    is_local = (candidate_ids >= head.first_id) & (candidate_ids < head.first_id + head.num_rows)
    return logits.where(is_local, 0.0)


def engine_sums(latents: Tensor, candidate_ids: Tensor | None, head: Head, tau: Tensor) -> tuple[Tensor, Tensor]:
    """Both at once through the engine's own head, some rows at a time: (N, H), (N, K), (N, 1) -> (N,), (N, K).

    Its product cannot be cut into vocabulary tiles, so the rows are cut.
    """
    chunk = max(1, tile_elements(latents.device) // max(head.num_rows, 1))
    ids = latents.new_zeros(len(latents), 1, dtype=torch.int64) if candidate_ids is None else candidate_ids
    parts = []
    columns = torch.split(latents, chunk), torch.split(ids, chunk), torch.split(tau, chunk)
    for hidden, some_ids, some_tau in zip(*columns, strict=True):
        logits = tile_logits(hidden, head, some_tau, 0, head.num_rows)
        picked = logits.gather(1, local_candidates(some_ids, head))
        parts.append((logits.logsumexp(-1), only_local(picked, some_ids, head)))
    normalizers, logits = (torch.cat(column) for column in zip(*parts, strict=True))
    return normalizers, logits


def across_ranks(normalizers: Tensor, logits: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Whole-vocabulary values from each rank's share, in one packed collective: (J, N), (J, N, K) -> same shapes."""
    if head.all_gather is None:
        return normalizers, logits
    packed = head.all_gather(torch.cat([normalizers.flatten(), logits.flatten()]))  # (ranks, J*N*(1+K))
    shares, parts = torch.split(packed, [normalizers.numel(), logits.numel()], dim=-1)
    return shares.logsumexp(0).view(normalizers.shape), parts.sum(0).view(logits.shape)


def known_normalizers(latents: Tensor, head: Head, tau: Tensor, ridden: Ridden | None) -> Tensor:
    """(J, N, H), (N, 1) -> (J, N): those that rode, and the rest by a second pass; NaN where a promise was broken."""
    num_layers = len(latents)

    def second_pass(hidden: Tensor, some_tau: Tensor) -> Tensor:
        flat = log_normalizers(hidden.flatten(0, 1), head, some_tau.repeat(num_layers, 1))
        return flat.view(num_layers, hidden.shape[1])

    if ridden is None:
        return second_pass(latents, tau)
    known = ridden.normalizers[:num_layers]
    if ridden.is_complete:
        return known.where(ridden.rode, torch.nan)
    if not host.can_look(latents.device):
        return known.where(ridden.rode, second_pass(latents, tau))
    missing = ridden.rode.logical_not().nonzero().squeeze(1)
    if len(missing) == 0:
        return known
    return known.index_copy(1, missing, second_pass(latents.index_select(1, missing), tau[missing]))


def probs_of(normalizers: Tensor, logits: Tensor) -> Tensor:
    """(J, N), (J, N, K) -> (J, N, K); NaN where a layer is not finite."""
    # +inf - +inf is NaN: a row whose normalizer overflowed must not pass as probability 0.
    return (logits - normalizers[..., None]).exp() + (normalizers - normalizers)[..., None]


def latent_sums(
    latents: Tensor, candidate_ids: Tensor, head: Head, tau: Tensor, ridden: Ridden | None
) -> tuple[Tensor, Tensor]:
    """Log-sum-exps and candidates' logits over the whole vocabulary, both over tau: (J, N), (J, N, K) float32."""
    num_layers, num_rows = latents.shape[:2]
    if head.project is not None:
        flat, flat_tau, ids = latents.flatten(0, 1), tau.repeat(num_layers, 1), candidate_ids.repeat(num_layers, 1)
        flat_normalizers, flat_logits = engine_sums(flat, ids, head, flat_tau)
        normalizers = flat_normalizers.view(num_layers, num_rows)
        logits = flat_logits.view(num_layers, *candidate_ids.shape)
    else:
        normalizers = known_normalizers(latents, head, tau, ridden)
        logits = candidate_logits(latents, candidate_ids, head, tau)
    return across_ranks(normalizers, logits, head)


def latent_probs(latents: Tensor, candidate_ids: Tensor, head: Head, tau: Tensor, ridden: Ridden | None) -> Tensor:
    """Eq. 2, p^l(x_i): (J, N, H), (N, K), (N, 1) -> (J, N, K) float32; NaN where a layer is not finite."""
    num_layers, num_rows = latents.shape[:2]
    is_plain = head.project is None and ridden is None and head.all_gather is None
    if is_plain and head.num_rows <= tile_width(num_layers * num_rows, latents.device):  # one tile: fewer calls
        logits = tile_logits(latents.flatten(0, 1), head, tau.repeat(num_layers, 1), 0, head.num_rows)
        logprobs = logits.log_softmax(-1).gather(1, candidate_ids.repeat(num_layers, 1))
        return logprobs.exp_().view(num_layers, *candidate_ids.shape)
    return probs_of(*latent_sums(latents, candidate_ids, head, tau, ridden))
