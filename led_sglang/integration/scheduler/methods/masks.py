"""SGLang's sampling masks and sampling logprobs, told of the draw that counts.

`return_sampling_mask` asks for the set that each token was drawn from and for its log-probability there; SGLang's
trainers for reinforcement learning read both. The engine takes them of its own draw: where LED decided the token
instead, they are written over. Shape letters: `B` rows of the batch, `M` of them want their mask.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from sglang.srt.layers.logits_processor import SamplingMaskOutput
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

OK, INVALID = 0, 2  # SGLang's SamplingMaskStatus; a request with an invalid one is aborted (HTTP 500)


@dataclass(frozen=True)
class Draw:
    """Rows whose tokens somebody else than the engine decided, and what they were drawn from."""

    rows: Tensor  # (n,) int64, of the batch
    ids: Tensor  # (n, K) integers
    weights: Tensor  # (n, K) float32, of any sum; 0 = not in the support
    is_made: Tensor  # (n,) bool: False = this row's token is another's after all


def write(output: "SamplingMaskOutput", draws: Iterable[Draw], token_ids: Tensor, info: "SamplingBatchInfo") -> None:
    """The engine's SamplingMaskOutput of a batch becomes that of `draws`, in place; later draws overrule earlier ones.

    token_ids: (B,), the tokens that were returned; info: SamplingBatchInfo. A row whose draw cannot have given its
    token is marked invalid. No host sync; rows that no draw made stay as they are, bit for bit.
    """
    batch_rows = info.sampling_mask_batch_indices  # (M,)
    chosen = token_ids.index_select(0, batch_rows)[:, None]  # (M, 1)
    for draw in draws:
        if len(draw.rows):
            own, is_made = _row_idx(draw, len(token_ids), batch_rows)
            _write(output, draw.ids[own], draw.weights[own].float(), is_made, chosen, info)


def forget(output: "SamplingMaskOutput", rows: Tensor, num_rows: int, info: "SamplingBatchInfo") -> None:
    """Rows of the batch whose mask could not be written, (n,), are invalid: what is there is of another draw."""
    is_lost = torch.zeros(num_rows, dtype=torch.bool, device=rows.device).index_fill_(0, rows, True)
    output.statuses.masked_fill_(is_lost[info.sampling_mask_batch_indices], INVALID)


def _row_idx(draw: Draw, num_rows: int, batch_rows: Tensor) -> tuple[Tensor, Tensor]:
    """Where in `draw` the M rows are, any place for others, and whether it made their tokens: (M,), (M,) bool."""
    order = torch.arange(len(draw.rows), device=batch_rows.device)
    position = batch_rows.new_full((num_rows,), -1).index_copy_(0, draw.rows, order.to(batch_rows.dtype))[batch_rows]
    own = position.clamp_min(0)
    return own, (position >= 0) & draw.is_made[own]


def _write(
    output: "SamplingMaskOutput",
    ids: Tensor,
    weights: Tensor,
    is_made: Tensor,
    chosen: Tensor,
    info: "SamplingBatchInfo",
) -> None:
    """ids, weights: (M, K); is_made: (M,); chosen: (M, 1)."""
    held = weights.masked_fill(ids != chosen, 0.0).sum(-1)  # (M,)
    mass = weights.sum(-1)
    weights, order = weights.sort(dim=-1, descending=True, stable=True)  # as the engine's: the likeliest first
    ids = ids.gather(1, order)
    num_short = output.token_ids.shape[1] - ids.shape[1]
    if num_short > 0:
        ids, weights = F.pad(ids, (0, num_short)), F.pad(weights, (0, num_short))
    elif num_short < 0:
        output.token_ids = F.pad(output.token_ids, (0, -num_short))
        if output.support_logprobs is not None:
            output.support_logprobs = F.pad(output.support_logprobs, (0, -num_short), value=-torch.inf)

    def put(reported: Tensor, ours: Tensor) -> Tensor:
        is_ours = is_made if ours.dim() == 1 else is_made[:, None]
        return torch.where(is_ours, ours.to(reported.dtype), reported)

    output.token_ids = put(output.token_ids, ids)
    output.lengths = put(output.lengths, (weights > 0).sum(-1))
    output.selected_logprobs = put(output.selected_logprobs, (held / mass).log())
    output.statuses = put(output.statuses, torch.where(held > 0, OK, INVALID))
    requested = info.sampling_support_logprobs_capture_indices  # of the M rows
    if requested is not None:
        ours = (weights / mass[:, None]).log().index_select(0, requested)
        output.support_logprobs = torch.where(is_made[requested][:, None], ours, output.support_logprobs)
