"""Logits over the whole vocabulary, for methods that need more of a layer than k candidates."""

import torch
import torch.nn.functional as F
from torch import Tensor

from led_sglang.ops.backends.lm_head import tile_logits
from led_sglang.ops.types import Head

LAYER_ELEMENTS = 1 << 24  # float32 logits of layers held at once: 64 MiB, or one layer where that is more


def layers_at_once(logits: Tensor) -> int:
    """How many layers, each with logits (R, V) like these, are held at once."""
    return max(1, LAYER_ELEMENTS // max(logits.numel(), 1))


def vocabulary_logits(latents: Tensor, head: Head, vocab_size: int) -> Tensor:
    """(N, H) -> (N, V) float32 at temperature 1.

    The caller owns the result. Columns beyond a whole head's rows are -inf. A sharded head makes one collective, equal
    on all ranks; its shards have equally many rows of weight, padding included, as every all-gather demands.
    """
    tau = torch.ones((), device=latents.device)
    if head.all_gather is None:
        logits = tile_logits(latents, head, tau, 0, min(head.num_rows, vocab_size))
        num_short = vocab_size - logits.shape[1]
        return F.pad(logits, (0, num_short), value=-torch.inf) if num_short else logits
    width = head.weight.shape[0]
    shard = tile_logits(latents, head, tau, 0, width)  # (N, V_shard)
    span = shard.new_full((1,), head.first_id), shard.new_full((1,), head.num_rows)
    packed = head.all_gather(torch.cat([*span, shard.flatten()]))  # (ranks, 2 + N * V_shard)
    first_id, num_rows = packed[:, :1].long(), packed[:, 1:2].long()  # exact below 2^24
    local_ids = torch.arange(width, device=shard.device)
    columns = (first_id + local_ids).where(local_ids < num_rows, vocab_size)  # (ranks, V_shard); padding goes past V
    shards = packed[:, 2:].view(-1, *shard.shape).transpose(0, 1).flatten(1)  # (N, ranks * V_shard)
    logits = shards.new_full((len(latents), vocab_size + 1), -torch.inf)
    return logits.index_copy_(1, columns.flatten().clamp_max(vocab_size), shards)[:, :vocab_size]


def without_padding(final_logits: Tensor, head: Head) -> Tensor:
    """float32 logits in which the columns that a whole head does not have are forbidden."""
    logits = final_logits.float()
    num_short = logits.shape[1] - head.num_rows
    if head.all_gather is not None or num_short <= 0:
        return logits
    return F.pad(logits[:, : head.num_rows], (0, num_short), value=-torch.inf)
