"""The step in a handful of kernels, for a GPU: a small batch waits for launches, not for arithmetic."""

from torch import Tensor

from led_sglang.ops.backends import lm_head as torch_head
from led_sglang.ops.backends.lm_head import across_ranks
from led_sglang.ops.backends.torch_step import layers_of, pick_latents
from led_sglang.ops.edits import LogitEdits
from led_sglang.ops.kernels import candidates, draft_tree, final_layer, lm_head
from led_sglang.ops.kernels.mix_and_sample import mix_and_sample
from led_sglang.ops.rows.draft_tree import DraftTree
from led_sglang.ops.types import Head, KnownLse, Latents, LedRows, LedStep, StepInputs


def led_step(
    final_logits: Tensor,
    latents: Latents,
    head: Head,
    rows: LedRows,
    inputs: StepInputs,
    known_lse: KnownLse | None = None,
    edits: LogitEdits | None = None,
    tree: DraftTree | None = None,
) -> LedStep:
    """See `led_sglang.ops.led_step`."""
    layers, tau, num_layers = layers_of(latents, rows), rows.tau, rows.max_depth - 1
    final = final_layer.final_rows(final_logits, tau, rows, inputs)
    if tree is not None:
        final = draft_tree.pruned(final, rows, inputs, tree, head.is_batch_invariant)
    if num_layers:
        hidden = pick_latents(layers, head, rows, None, num_layers)
        sums = latent_sums(hidden, final.candidate_ids, head, tau[:, None], final.explore_mask, known_lse, edits)
    else:
        sums = tau.new_empty(0, len(tau)), tau.new_empty(0, *final.logprobs.shape)
    # The caller's latents are those of the deepest request that may come: their number does not change.
    return mix_and_sample(final, *sums, rows, inputs, len(layers), head.is_batch_invariant)


def latent_sums(
    latents: Tensor,
    candidate_ids: Tensor,
    head: Head,
    tau: Tensor,
    explore_mask: Tensor,
    known_lse: KnownLse | None,
    edits: LogitEdits | None = None,
) -> tuple[Tensor, Tensor]:
    """As `led_sglang.ops.backends.lm_head.latent_sums`; rows that are not needed, (N,) bool, hold anything.

    Rows with edits take plain torch's way, needed or not; the kernels know none.
    """
    index = None if edits is None else edits.edited
    if head.project is not None and edits is None:
        return across_ranks(*candidates.projected_sums(latents, candidate_ids, head, tau, explore_mask), head)
    if head.project is not None or (edits is not None and index is None):
        return torch_head.latent_sums(latents, candidate_ids, head, tau, known_lse, edits)
    if index is not None:
        explore_mask = explore_mask.index_fill(0, index, False)
    logits = candidates.candidate_logits(latents, candidate_ids, head, tau, explore_mask)
    lse = lm_head.latent_lse(latents, head, tau, explore_mask, known_lse)
    if edits is None or index is None:
        return across_ranks(lse, logits, head)
    some = latents.index_select(1, index), candidate_ids[index], head, tau[index], None, edits.take(index)
    edited_lse, edited_logits = torch_head.local_sums(*some)
    both = lse.repeat(2, 1, 1).index_copy_(2, index, edited_lse)
    both, logits = across_ranks(both, logits.index_copy_(1, index, edited_logits), head)
    return both.amax(0), logits
