"""What the method needs of the LM head for a latent row: a log-sum-exp and the logits of k candidates."""

import torch
import torch.nn.functional as F
from torch import Tensor

from led_sglang.ops.types import Head

TILE_ELEMENTS = 1 << 17  # float32 logits held at once on CPU: 512 KiB stays in the second-level cache
CUDA_TILE_ELEMENTS = 1 << 24  # 64 MiB: large enough for the matrix product to reach its speed


def tile_width(num_latents: int, device: torch.device) -> int:
    budget = CUDA_TILE_ELEMENTS if device.type == "cuda" else TILE_ELEMENTS
    return max(512, budget // max(num_latents, 1) // 512 * 512)


def finish_logits(logits: Tensor, head: Head, tau: Tensor) -> Tensor:
    """Head scale, soft cap and temperature; works in place on a float32 tensor that the caller owns."""
    if head.scale != 1.0:
        logits.mul_(head.scale)
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    return logits.div_(tau)


def tile_logits(latents: Tensor, head: Head, tau: Tensor, start: int, stop: int) -> Tensor:
    """(N, H) latents and (N, 1) temperatures to (N, stop - start) float32 logits over tau."""
    bias = None if head.bias is None else head.bias[start:stop]
    return finish_logits(F.linear(latents, head.weight[start:stop], bias).float(), head, tau)


def log_normalizers(latents: Tensor, head: Head, tau: Tensor) -> Tensor:
    """log sum_v exp(logit_v / tau) over this rank's rows, streamed over vocabulary tiles: (N, H), (N, 1) -> (N,)."""
    width = tile_width(latents.shape[0], latents.device)
    sums = [
        tile_logits(latents, head, tau, start, min(start + width, head.num_rows)).logsumexp(-1)
        for start in range(0, head.num_rows, width)
    ]
    if not sums:  # a rank that holds nothing but padding
        return tau.new_full(latents.shape[:1], -torch.inf)
    return sums[0] if len(sums) == 1 else torch.stack(sums).logsumexp(0)


def candidate_logits(latents: Tensor, candidate_ids: Tensor, head: Head, tau: Tensor) -> Tensor:
    """(J, N, H), (N, K), (N, 1) -> (J, N, K) float32 logits over tau; 0 for candidates of another rank."""
    local_ids = (candidate_ids - head.first_id).clamp(0, max(head.num_rows - 1, 0))
    directions = head.weight[local_ids].float()  # (N, K, H)
    logits = torch.bmm(directions, latents.float().permute(1, 2, 0)).permute(2, 0, 1)  # (J, N, K)
    if head.bias is not None:
        logits = logits + head.bias[local_ids].float()
    logits = finish_logits(logits, head, tau)
    if head.all_gather is None:
        return logits
    is_local = (candidate_ids >= head.first_id) & (candidate_ids < head.first_id + head.num_rows)
    return logits.where(is_local, 0.0)


def across_ranks(normalizers: Tensor, logits: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Whole-vocabulary values from each rank's share, in one packed collective: (J, N), (J, N, K) -> same shapes."""
    if head.all_gather is None:
        return normalizers, logits
    packed = head.all_gather(torch.cat([normalizers.flatten(), logits.flatten()]))  # (ranks, J*N*(1+K))
    shares, parts = torch.split(packed, [normalizers.numel(), logits.numel()], dim=-1)
    return shares.logsumexp(0).view(normalizers.shape), parts.sum(0).view(logits.shape)


def latent_probs(latents: Tensor, candidate_ids: Tensor, head: Head, tau: Tensor, needed: Tensor | None) -> Tensor:
    """Eq. 2, p^l(x_i): (J, N, H), (N, K), (N, 1) -> (J, N, K) float32; NaN where a layer is not finite.

    `needed` (N,) lets a backend skip rows without changing shapes; plain torch cannot, and computes them all.
    """
    num_layers, num_rows = latents.shape[:2]
    flat, flat_tau = latents.flatten(0, 1), tau.repeat(num_layers, 1)  # (J*N, H), (J*N, 1)
    if head.all_gather is None and head.num_rows <= tile_width(len(flat), flat.device):  # one tile: fewer calls
        logprobs = tile_logits(flat, head, flat_tau, 0, head.num_rows).log_softmax(-1)
        return logprobs.gather(1, candidate_ids.repeat(num_layers, 1)).exp_().view(num_layers, num_rows, -1)
    normalizers = log_normalizers(flat, head, flat_tau).view(num_layers, num_rows)
    logits = candidate_logits(latents, candidate_ids, head, tau)
    normalizers, logits = across_ranks(normalizers, logits, head)
    # +inf - +inf is NaN: a row whose normalizer overflowed must not pass as probability 0.
    return (logits - normalizers[..., None]).exp() + (normalizers - normalizers)[..., None]
