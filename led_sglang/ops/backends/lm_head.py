"""What the method needs of the LM head for a latent row: a log-sum-exp and the logits of k candidates."""

import torch
import torch.nn.functional as F
from torch import Tensor

from led_sglang.ops.edits import LogitEdits, edited_logprobs
from led_sglang.ops.fp8.rows import CHUNK
from led_sglang.ops.types import Head, KnownLse

TILE_ELEMENTS = 1 << 17  # float32 logits held at once on CPU: 512 KiB stays in the second-level cache
DEVICE_TILE_ELEMENTS = 4 << 20  # elsewhere: 10 bytes each, with the half-precision product and exp's copy; 40 MiB
PROJECT_ROWS = 256  # rows of one product of the engine's: few rows cost it as much, as it reads the whole head
INVARIANT_WIDTH = 2048  # 14 MiB of float32 logits with 7 layers of 256 rows
CANDIDATE_ELEMENTS = 1 << 22  # of the candidates' head rows held at once: 16 MiB, and half of it again to widen them


def tile_elements(device: torch.device) -> int:
    return TILE_ELEMENTS if device.type == "cpu" else DEVICE_TILE_ELEMENTS


def tile_width(num_latents: int, device: torch.device, is_batch_invariant: bool = False) -> int:
    """Columns of the vocabulary multiplied at once; is_batch_invariant: the same for any number of rows."""
    if is_batch_invariant:
        return INVARIANT_WIDTH
    return max(512, tile_elements(device) // max(num_latents, 1) // 512 * 512)


def scale_and_cap(logits: Tensor, head: Head) -> Tensor:
    """Head scale and soft cap; works in place on a float32 tensor that the caller owns."""
    if head.scale != 1.0:
        logits.mul_(head.scale)
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    return logits


def finish_logits(logits: Tensor, head: Head, tau: Tensor) -> Tensor:
    """The same, and temperature."""
    return scale_and_cap(logits, head).div_(tau)


def layer_logits(latents: Tensor, head: Head, start: int, stop: int, is_for_lse: bool = False) -> Tensor:
    """(..., H) latents to (..., stop - start) float32 logits at temperature 1, which the caller owns.

    is_for_lse: of the head's copy for log-sum-exps, where it has one.
    """
    if head.project is not None:
        raw = engine_product(latents.flatten(0, -2), head)[:, start:stop].view(*latents.shape[:-1], stop - start)
        return scale_and_cap(raw.to(torch.float32, copy=True), head)
    bias = None if head.bias is None else head.bias[start:stop]
    copy = head.lse_copy if is_for_lse else None
    weight = head.weight[start:stop] if copy is None else copy.decoded(start, stop, latents.dtype)
    return scale_and_cap(F.linear(latents, weight, bias).float(), head)


def tile_logits(latents: Tensor, head: Head, tau: Tensor, start: int, stop: int) -> Tensor:
    """The same over tau."""
    return layer_logits(latents, head, start, stop).div_(tau)


def tile_sums(logits: Tensor, tau: Tensor, edits: LogitEdits | None, first_id: int) -> Tensor:
    """Log-sum-exps over tau of the logits (..., width), which are overwritten: (...), or with edits (2, ...).

    The second are those of the edited logits; a layer is normalised by the larger one (`led_sglang.ops.edits`).
    """
    if edits is None:
        return logits.div_(tau).logsumexp(-1)
    unedited_lse = (logits / tau).logsumexp(-1)
    return torch.stack([unedited_lse, edits.apply(logits, first_id).div_(tau).logsumexp(-1)])


def latent_lse(latents: Tensor, head: Head, tau: Tensor, edits: LogitEdits | None = None) -> Tensor:
    """log sum_v exp(logit_v / tau) over this rank's rows, streamed over vocabulary tiles: (N, H), (N, 1) -> (N,).

    (2, N) with edits, of R rows, of which N is a multiple: see `tile_sums`.
    """
    if head.project is not None:
        return engine_sums(latents, None, head, tau, edits)[0]
    width = tile_width(latents.shape[0], latents.device, head.is_batch_invariant)
    if head.lse_copy is not None:
        width = min(width, CHUNK)
    sums = []
    for start in range(0, head.num_rows, width):
        logits = layer_logits(latents, head, start, min(start + width, head.num_rows), is_for_lse=True)
        sums.append(tile_sums(logits, tau, edits, head.first_id + start))
    if not sums:  # a rank that holds nothing but padding
        return tau.new_full((*(() if edits is None else (2,)), len(latents)), -torch.inf)
    return sums[0] if len(sums) == 1 else torch.stack(sums).logsumexp(0)


def local_candidates(candidate_ids: Tensor, head: Head) -> Tensor:
    """This rank's row of each candidate; some valid row for another rank's."""
    return (candidate_ids - head.first_id).clamp(0, max(head.num_rows - 1, 0))


def candidate_logits(
    latents: Tensor, candidate_ids: Tensor, head: Head, tau: Tensor, edits: LogitEdits | None = None
) -> Tensor:
    """(J, N, H), (N, K), (N, 1) -> (J, N, K) float32 logits over tau, edited; 0 for candidates of another rank."""
    chunk = max(1, CANDIDATE_ELEMENTS // max(candidate_ids.shape[1] * latents.shape[2], 1))
    if len(candidate_ids) > chunk:
        columns = torch.split(latents, chunk, 1), torch.split(candidate_ids, chunk), torch.split(tau, chunk)
        chunks = torch.split(torch.arange(len(candidate_ids), device=tau.device), chunk)
        parts = [
            candidate_logits(h, ids, head, t, None if edits is None else edits.take(row_idx))
            for h, ids, t, row_idx in zip(*columns, chunks, strict=True)
        ]
        return torch.cat(parts, 1)
    if head.project is not None:
        num_layers = len(latents)
        ids, taus = candidate_ids.repeat(num_layers, 1), tau.repeat(num_layers, 1)
        return engine_sums(latents.flatten(0, 1), ids, head, taus, edits)[1].view(num_layers, *candidate_ids.shape)
    local_ids = local_candidates(candidate_ids, head)
    directions = head.weight[local_ids].float()  # (N, K, H)
    if head.is_batch_invariant:  # a batched product's order of sums may follow the other rows' depth and candidates
        logits = torch.stack([(directions * hidden.float()[:, None]).sum(-1) for hidden in latents])
    else:
        logits = torch.bmm(directions, latents.float().permute(1, 2, 0)).permute(2, 0, 1)  # (J, N, K)
    if head.bias is not None:
        logits = logits + head.bias[local_ids].float()
    logits = scale_and_cap(logits, head)
    if edits is not None:
        edits.apply_at(logits, candidate_ids)
    return only_local(logits.div_(tau), candidate_ids, head)


def sum_of(values: Tensor) -> Tensor:
    """(..., K) to (..., 1), one candidate after the other: zeros behind, for rows with more of them, change no bit."""
    return values.cumsum(-1)[..., -1:]


def only_local(logits: Tensor, candidate_ids: Tensor, head: Head) -> Tensor:
    if head.all_gather is None:
        return logits
    is_local = (candidate_ids >= head.first_id) & (candidate_ids < head.first_id + head.num_rows)
    return logits.where(is_local, 0.0)


def engine_sums(
    latents: Tensor, candidate_ids: Tensor | None, head: Head, tau: Tensor, edits: LogitEdits | None = None
) -> tuple[Tensor, Tensor]:
    """Both at once through the engine's own head, many rows at a time: (N, H), (N, K), (N, 1) -> (N,), (N, K).

    Its product cannot be cut into vocabulary tiles, so the rows are cut. The first is (2, N) with edits.
    """
    ids = latents.new_zeros(len(latents), 1, dtype=torch.int64) if candidate_ids is None else candidate_ids
    many = max(PROJECT_ROWS, tile_elements(latents.device) // max(head.num_rows, 1))
    columns = torch.split(latents, many), torch.split(ids, many), torch.split(tau, many)
    chunks = torch.split(torch.arange(len(latents), device=tau.device), many)
    parts = [_product_sums(h, i, t, p, head, edits) for h, i, t, p in zip(*columns, chunks, strict=True)]
    sums, logits = zip(*parts, strict=True)
    return torch.cat(sums, -1), torch.cat(logits)


def _product_sums(
    latents: Tensor, ids: Tensor, tau: Tensor, row_idx: Tensor, head: Head, edits: LogitEdits | None
) -> tuple[Tensor, Tensor]:
    """`engine_sums` of one product, of which a few rows at a time are widened to float32."""
    products, parts = engine_product(latents, head), []
    few = max(1, tile_elements(latents.device) // max(head.num_rows, 1))
    columns = products, ids, tau, row_idx
    for raw, some_ids, some_tau, some_rows in zip(*(torch.split(column, few) for column in columns), strict=True):
        some = None if edits is None else edits.take(some_rows % edits.num_rows)
        logits = scale_and_cap(raw.to(torch.float32, copy=True), head)
        sums = tile_sums(logits, some_tau, some, head.first_id)  # the logits are edited, and over tau, by now
        picked = logits.gather(1, local_candidates(some_ids, head))
        parts.append((sums, only_local(picked, some_ids, head)))
    sums_of_parts, logits_of_parts = zip(*parts, strict=True)
    return torch.cat(sums_of_parts, -1), torch.cat(logits_of_parts)


def engine_product(latents: Tensor, head: Head) -> Tensor:
    """(N, H) through the engine's own head: (N, num_rows) in its dtype, before scale and soft cap."""
    assert head.project is not None
    return head.project(latents)[:, : head.num_rows]


def across_ranks(lse: Tensor, logits: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Whole-vocabulary values from each rank's share, in one packed collective: (..., J, N), (J, N, K), same shapes."""
    if head.all_gather is None:
        return lse, logits
    packed = head.all_gather(torch.cat([lse.flatten(), logits.flatten()]))  # (ranks, J*N*(1+K))
    shares, parts = torch.split(packed, [lse.numel(), logits.numel()], dim=-1)
    return shares.logsumexp(0).view(lse.shape), parts.sum(0).view(logits.shape)


def complete_lse(
    latents: Tensor, head: Head, tau: Tensor, known_lse: KnownLse | None, edits: LogitEdits | None = None
) -> Tensor:
    """(J, N, H), (N, 1) -> (J, N): what is known, and the rest by a second pass; NaN where a promise was broken.

    (2, J, N) with edits, of which nothing is known: see `tile_sums`.
    """
    num_layers = len(latents)

    def second_pass(hidden: Tensor, some_tau: Tensor, index: Tensor | None = None) -> Tensor:
        some = None if edits is None else edits.take(index)
        flat = latent_lse(hidden.flatten(0, 1), head, some_tau.repeat(num_layers, 1), some)
        return flat.view(*flat.shape[:-1], num_layers, hidden.shape[1])

    if known_lse is None:
        return second_pass(latents, tau)
    known = known_lse.lse[:num_layers]
    if known_lse.is_complete:
        return known.where(known_lse.has_lse, torch.nan)
    lse_missing = known_lse.lse_missing
    if lse_missing is None:
        return known.where(known_lse.has_lse, second_pass(latents, tau))
    if edits is not None:
        known = known.expand(2, *known.shape)
    if len(lse_missing) == 0:
        return known
    return known.index_copy(
        -1, lse_missing, second_pass(latents.index_select(1, lse_missing), tau[lse_missing], lse_missing)
    )


def is_one_weight(head: Head) -> bool:
    """Log-sum-exps and candidates' logits may come of one product with the weight here."""
    return head.project is None and head.all_gather is None and head.lse_copy is None


def probs_of(lse: Tensor, logits: Tensor) -> Tensor:
    """(J, N), (J, N, K) -> (J, N, K); NaN where a layer is not finite."""
    # +inf - +inf is NaN: a row whose log-sum-exp overflowed must not pass as probability 0.
    return (logits - lse[..., None]).exp() + (lse - lse)[..., None]


def local_sums(
    latents: Tensor,
    candidate_ids: Tensor,
    head: Head,
    tau: Tensor,
    known_lse: KnownLse | None,
    edits: LogitEdits | None,
) -> tuple[Tensor, Tensor]:
    """This rank's share of `latent_sums`; with edits the first is (2, J, N), see `tile_sums`."""
    num_layers, num_rows = latents.shape[:2]
    if head.project is not None:
        flat, flat_tau, ids = latents.flatten(0, 1), tau.repeat(num_layers, 1), candidate_ids.repeat(num_layers, 1)
        lse, logits = engine_sums(flat, ids, head, flat_tau, edits)
        return lse.view(*lse.shape[:-1], num_layers, num_rows), logits.view(num_layers, num_rows, -1)
    lse = complete_lse(latents, head, tau, known_lse, edits)
    return lse, candidate_logits(latents, candidate_ids, head, tau, edits)


def latent_sums(
    latents: Tensor,
    candidate_ids: Tensor,
    head: Head,
    tau: Tensor,
    known_lse: KnownLse | None,
    edits: LogitEdits | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exps and candidates' logits over the whole vocabulary, both over tau: (J, N), (J, N, K) float32."""
    lse, logits = across_ranks(*local_sums(latents, candidate_ids, head, tau, known_lse, edits), head)
    return lse if edits is None else lse.amax(0), logits


def latent_probs(
    latents: Tensor,
    candidate_ids: Tensor,
    head: Head,
    tau: Tensor,
    known_lse: KnownLse | None,
    edits: LogitEdits | None = None,
) -> Tensor:
    """Eq. 2, p^l(x_i): (J, N, H), (N, K), (N, 1) -> (J, N, K) float32; NaN where a layer is not finite."""
    num_layers, num_rows = latents.shape[:2]
    is_whole = is_one_weight(head) and known_lse is None
    width = tile_width(num_layers * num_rows, latents.device, head.is_batch_invariant)
    if is_whole and head.num_rows <= width:  # one tile: fewer calls
        flat, flat_tau = latents.flatten(0, 1), tau.repeat(num_layers, 1)
        if edits is None:
            logprobs = tile_logits(flat, head, flat_tau, 0, head.num_rows).log_softmax(-1)
        else:
            logprobs = edited_logprobs(layer_logits(flat, head, 0, head.num_rows), flat_tau, edits)
        return logprobs.gather(1, candidate_ids.repeat(num_layers, 1)).exp_().view(num_layers, *candidate_ids.shape)
    return probs_of(*latent_sums(latents, candidate_ids, head, tau, known_lse, edits))
