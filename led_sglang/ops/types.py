"""Inputs and outputs shared by every backend of the LED step.

Shape letters: `R` rows, `D` captured latent layers, `K` candidates, `V` vocabulary, `H` hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from led_sglang.ops.arrays import Columns

# The captured states, or what gathers them: a step in which no row needs them does not.
Latents = Tensor | Callable[[], Tensor]
ALIGNMENT = 16  # a kernel is compiled anew for pointers that are no multiple of so many bytes


@dataclass(frozen=True)
class Head:
    """The LM head, or one tensor-parallel rank's rows of it."""

    weight: Tensor  # (V_shard, H) in the model's dtype
    num_rows: int  # rows of `weight` that are real vocabulary, the rest is padding
    first_id: int = 0  # vocabulary id of row 0
    bias: Tensor | None = None  # (V_shard,)
    scale: float = 1.0  # multiplies the logits
    softcap: float | None = None  # logits = softcap * tanh(logits / softcap)
    final_norm: Callable[[Tensor], Tensor] | None = None  # (N, H) -> (N, H), for `latent_norm`
    all_gather: Callable[[Tensor], Tensor] | None = None  # (n,) -> (ranks, n); None = the head is whole
    # The engine's own product, (N, H) -> (N, V_shard) before scale and soft cap, where `weight` cannot be multiplied
    # with (quantised, LoRA): exact and slower. `weight` is then only what tells dtype and device.
    project: Callable[[Tensor], Tensor] | None = None
    # A row's numbers do not depend on the other rows of the batch, last bits included (deterministic inference). Needs
    # products of matrices that do not either.
    is_batch_invariant: bool = False


@dataclass(frozen=True)
class LedRows(Columns):
    """What each row asked for; all tensors live on the step's device.

    The host-known fields with defaults are promises: each one kept False spares the step a few torch calls, which is
    what a small model on CPU pays for. The defaults are always right.
    """

    active: Tensor  # (R,) bool: inside its phase; other rows never explore and cost no latent work
    depth: Tensor  # (R,) int64, 1..D+1
    top_k: Tensor  # (R,) int64, 1..K
    temperature: Tensor  # (R,) float32 > 0; ignored where greedy
    greedy: Tensor  # (R,) bool: temperature 1, arg-max of the branch the coin picks
    exploit: Tensor  # (R,) bool: False = always explore (ablation)
    latent_norm: Tensor  # (R,) bool: final norm on the latents (ablation)
    normalize_layers: Tensor  # (R,) bool: each layer normalised over the candidates before the sum (ablation)
    latent_offset: Tensor  # (R,) int64, 0 = the paper, 1 = the released code (one layer earlier)
    min_p: Tensor  # (R,) float32 in [0, 1]: candidates below min_p * max p^L are dropped
    trace: Tensor  # (R,) bool: compute the explore branch even where the coin says exploit (trace)
    max_depth: int  # host-known upper bound of `depth` in this batch
    max_top_k: int  # host-known upper bound of `top_k` in this batch: K
    any_trace: bool  # host-known: some row has `trace`
    any_norm: bool  # host-known: some row has `latent_norm`
    all_norm: bool  # host-known: every row has `latent_norm`
    any_min_p: bool = True  # host-known: False promises that every `min_p` is 0
    mixed_top_k: bool = True  # host-known: False promises that every `top_k` equals `max_top_k`
    mixed_depth: bool = True  # host-known: False promises that every `depth` equals `max_depth`
    any_greedy: bool = True  # host-known: False promises that no row is `greedy`
    any_normalize: bool = True  # host-known: False promises that no row has `normalize_layers`
    any_offset: bool = True  # host-known: False promises that every `latent_offset` is 0
    # Host-known: rows that are not active are given a token too, of the final layer's whole distribution.
    draws_inactive: bool = False  # "compiled" only
    # What a backend made of these columns; `replace` begins anew, `activated` does not.
    cache: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def activated(self, now: Columns, draws_inactive: bool = False) -> "LedRows":
        """The same rows with a step's activity: `now.active`, (R,) bool."""
        rows = object.__new__(LedRows)
        rows.__dict__.update(self.__dict__, draws_inactive=draws_inactive)
        rows.take("active", now)
        return rows


@dataclass(frozen=True)
class Noise(Columns):
    """Uniforms in [0, 1), equal on all tensor-parallel ranks."""

    coin_uniform: Tensor  # (R,) float64
    token_uniform: Tensor  # (R,) float64


@dataclass(frozen=True)
class KnownLse:
    """Log-sum-exps of latent rows that the head's own weight pass has computed already (the one-pass form)."""

    lse: Tensor  # (J, R) float32, log sum exp(logit / tau) over this rank's vocabulary; any value where not `has_lse`
    has_lse: Tensor  # (R,) bool: this row's first J layers did, without final norm and without offset
    is_complete: bool = False  # host-known promise: every row that needs its latents rode; spares the second pass


@dataclass(frozen=True)
class LedStep(Columns):
    """One decoded step. Entries of rows that are not `ok` or not active are meaningless, `draws_inactive` apart.

    Where a row neither explored nor asked for `trace`, `depth` is 1, `explore_probs` equal `exploit_probs` and
    `entropy` is that of the exploit branch: the explore branch was not computed.
    """

    token_ids: Tensor  # (R,) int64
    ok: Tensor  # (R,) bool: False = non-finite input, use the engine's token
    explored: Tensor  # (R,) bool: the coin picked the explore branch
    depth: Tensor  # (R,) int64: depth of maximum entropy, 1 = final layer alone
    confidence: Tensor  # (R,) float32: max_v p^L(v)
    entropy: Tensor | None  # (R,) float32, nats, of the aggregate at `depth`; None: no row has `trace`
    candidate_ids: Tensor  # (R, K) int64, most probable first
    exploit_probs: Tensor  # (R, K) float32, zero beyond the row's top_k
    explore_probs: Tensor  # (R, K) float32
    # (R,) float32: log p_LED of token_ids (Eq. 6 with the coin summed out), valid where full or explored; None: no row
    # has `trace`. What nobody will read is what a small model need not pay for.
    logprob: Tensor | None
    depth_entropy: Tensor | None = None  # (R, D) float32, nats, of the aggregate at each depth; valid where full
