"""What the LED step is given and what it gives back: plain structs of tensors, and what a row is.

Three things are called rows:

- a *request row* is one request of the batch. The host holds it; its parameters do not change from step to step;
- a *token row* is one token to be decided in this step: one row of final logits, one entry of every column below. A
  request owns one token row in a decode step, and several where several of its tokens are decided at once (draft tokens
  under verification). `RowMeta.take` and `LedRows.take` make the columns of such rows from those of the requests;
- a *weight row* is one row of the LM head: one token of the vocabulary.

Shape letters: `B` token rows of a batch, `R` of them ours, `D` captured latent layers, `K` candidates, `V` vocabulary,
`H` hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from led_sglang.ops.fp8.rows import Fp8Rows
from led_sglang.wire import CONFIDENCE_BOUNDS, DEPTH_OFFSET

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
    # with (quantised, LoRA): exact and slower. `weight` then gives dtype and device alone.
    project: Callable[[Tensor], Tensor] | None = None
    # A row's bits do not depend on the other rows of the batch. Needs products of matrices that do not either.
    is_batch_invariant: bool = False
    lse_copy: Fp8Rows | None = None  # of `weight`, for log-sum-exps of a second pass; baselines take `weight`


@dataclass(frozen=True)
class RowMeta:
    """Our rows of a batch and what does not change from token to token; on the step's device."""

    index: Tensor | None  # (R,) int64 rows of the batch; None = all of them in order
    seed: Tensor  # (R,) int64
    sample: Tensor  # (R,) int64
    start_state: Tensor  # (R,) int64: of the thinking automaton after the request's whole ids
    start_length: Tensor  # (R,) int64: number of those ids
    phase_all: Tensor  # (R,) bool
    is_led: Tensor | None  # (R,) bool; None = all of them
    any_phase_all: bool

    def pick(self, batch_tensor: Tensor) -> Tensor:
        """(B or more, ...) -> (R, ...): a graph's batch is padded."""
        return batch_tensor[: self.num_rows] if self.index is None else batch_tensor.index_select(0, self.index)

    def take(self, request_idx: Tensor, index: Tensor | None = None) -> "RowMeta":
        """Token rows of requests: entry n is of the request `request_idx[n]`, which may come again; (N,) int64.

        index: (N,) int64, where they are among the token rows of the batch; None: they are all of them, in order.
        """
        return RowMeta(
            index=index,
            seed=self.seed[request_idx],
            sample=self.sample[request_idx],
            start_state=self.start_state[request_idx],
            start_length=self.start_length[request_idx],
            phase_all=self.phase_all[request_idx],
            is_led=None if self.is_led is None else self.is_led[request_idx],
            any_phase_all=self.any_phase_all,
        )

    @property
    def num_rows(self) -> int:
        return len(self.seed)

    @property
    def in_batch(self) -> Tensor:
        """`index`, whatever it is: (R,) int64."""
        return torch.arange(self.num_rows, device=self.seed.device) if self.index is None else self.index

    @cached_property
    def batch_rows(self) -> Any:
        """`index` for numpy: (R,) int64. CPU only."""
        return np.arange(self.num_rows) if self.index is None else self.index.numpy()

    @cached_property
    def columns(self) -> Any:
        """For `numba_loops.fill_row_inputs`. CPU only."""
        is_led = np.ones(self.num_rows, np.bool_) if self.is_led is None else self.is_led.numpy()
        named = self.phase_all, self.start_state, self.start_length, self.seed, self.sample
        return self.batch_rows, is_led, *(column.numpy() for column in named)


@dataclass(frozen=True)
class StepInputs:
    """What one step adds to what its rows ask for. The uniforms, in [0, 1), are equal on all tensor-parallel ranks."""

    active: Tensor  # (R,) bool: LED decodes them, inside their phase; other rows never explore and cost no latent work
    coin_uniform: Tensor  # (R,) float64
    token_uniform: Tensor  # (R,) float64


@dataclass(frozen=True)
class RowInputs(StepInputs):
    """The same, and where our rows are before their token is known."""

    slots: Tensor  # (R,) int64, of the request
    states: Tensor  # (R,) int64 of the thinking automaton
    thinking: Tensor  # (R,) bool
    positions: Tensor  # (R,) int64


@dataclass(frozen=True)
class LedRows:
    """What the rows' requests ask for; made once for as long as the rows stay the same, on the step's device.

    The host-known fields with defaults are promises: each one kept False spares the step a few torch calls, which is
    what a small model on CPU pays for. The defaults are always right.
    """

    depth: Tensor  # (R,) int64, 1..D+1
    top_k: Tensor  # (R,) int64, 1..K
    temperature: Tensor  # (R,) float32 > 0; ignored where greedy
    greedy: Tensor  # (R,) bool: temperature 1, arg-max of the branch the coin picks
    exploit: Tensor  # (R,) bool: False = always explore (ablation)
    latent_norm: Tensor  # (R,) bool: final norm on the latents (ablation)
    normalize_layers: Tensor  # (R,) bool: each layer normalised over the candidates before the sum (ablation)
    latent_offset: Tensor  # (R,) int64, 0 = the paper, 1 = the released code (one layer earlier)
    min_p: Tensor  # (R,) float32 in [0, 1]: candidates below min_p * max p^L are dropped
    trace: Tensor  # (R,) bool: compute the explore branch even where the coin says exploit
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

    @classmethod
    def uniform(
        cls,
        num_rows: int,
        depth: int | Tensor = 8,
        top_k: int | Tensor = 8,
        device: torch.device | str = "cpu",
        **changes: Any,
    ) -> "LedRows":
        """Rows that all ask for the same, by default what the paper does.

        changes: columns as one value for every row, or as (num_rows,) tensors, which are read on the host; and
        host-known fields, which otherwise are what the columns are. Raises TypeError for a name that is no field.
        """
        values = {**_DEFAULTS, "depth": depth, "top_k": top_k} | {k: v for k, v in changes.items() if k in _DEFAULTS}
        columns = {
            name: value.to(device) if isinstance(value, Tensor) else torch.full((num_rows,), value, device=device)
            for name, value in values.items()
        }
        known: dict[str, Any] = {
            "max_depth": max(_known(values["depth"]), default=1),
            "max_top_k": max(_known(values["top_k"]), default=1),
            "mixed_depth": len(set(_known(values["depth"]))) > 1,
            "mixed_top_k": len(set(_known(values["top_k"]))) > 1,
            "all_norm": all(_known(values["latent_norm"])),
            **{promise: any(_known(values[name])) for promise, name in _ANY.items()},
        }
        return cls(**known | columns | {k: v for k, v in changes.items() if k not in _DEFAULTS})

    def take(self, request_idx: Tensor) -> "LedRows":
        """Token rows of requests: entry n asks for what `request_idx[n]` does, which may come again; (N,) int64."""
        return replace(self, **{name: getattr(self, name)[request_idx] for name in _DEFAULTS})

    @property
    def tau(self) -> Tensor:
        """(R,) float32: 1 where greedy."""
        return self.temperature.masked_fill(self.greedy, 1.0) if self.any_greedy else self.temperature

    @cached_property
    def arrays(self) -> dict[str, Any]:
        """The columns as numpy sees them, for the compiled loops, and "tau", a (R, 1) tensor. CPU only."""
        return {name: getattr(self, name).numpy() for name in _DEFAULTS} | {"tau": self.tau[:, None]}


# What every row of `LedRows.uniform` asks for; the columns of LedRows, in order.
_DEFAULTS: dict[str, Any] = {
    "depth": 8,
    "top_k": 8,
    "temperature": 0.6,
    "greedy": False,
    "exploit": True,
    "latent_norm": False,
    "normalize_layers": False,
    "latent_offset": 0,
    "min_p": 0.0,
    "trace": False,
}
_ANY = {
    "any_trace": "trace",
    "any_norm": "latent_norm",
    "any_min_p": "min_p",
    "any_greedy": "greedy",
    "any_normalize": "normalize_layers",
    "any_offset": "latent_offset",
}


def _known(value: Any) -> list[Any]:
    """A column's values on the host."""
    return value.tolist() if isinstance(value, Tensor) else [value]


@dataclass(frozen=True)
class KnownLse:
    """Log-sum-exps of latent rows that the head's own weight pass has computed already (the one-pass form)."""

    lse: Tensor  # (J, R) float32, log sum exp(logit / tau) over this rank's vocabulary; any value where not `has_lse`
    has_lse: Tensor  # (R,) bool: of this row's first J layers it is known, without final norm and without offset
    is_complete: bool = False  # host-known promise: of every row that needs its latents; spares the second pass
    lse_missing: Tensor | None = None  # (M,) int64: the rows of which it is not, where shapes may depend on data

    def compacted(self, index: Tensor | None) -> "KnownLse":
        """Of some rows, (N,) int64, or of all, with `lse_missing`; reads values on the host."""
        lse, has_lse = self.lse, self.has_lse
        if index is not None:
            lse, has_lse = lse.index_select(1, index), has_lse.index_select(0, index)
        lse_missing = None if self.is_complete else has_lse.logical_not().nonzero().squeeze(1)
        return KnownLse(lse, has_lse, self.is_complete, lse_missing)


@dataclass(frozen=True)
class LedStep:
    """One decoded step. Entries of rows that are not `ok` or not active are meaningless, `draws_inactive` apart.

    Of a row that neither explored nor asked for `trace` the explore branch's numbers are the exploit branch's, depth 1.
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
    # (R,) float32: log p_LED of token_ids, the coin summed out; valid where `trace` or explored; None: as `entropy`.
    logprob: Tensor | None
    depth_entropy: Tensor | None = None  # (R, D) float32, nats, of the aggregate at each depth; valid where `trace`


@dataclass(frozen=True)
class Counters:
    """Counts of rows by kind on one device."""

    values: Tensor  # (DEPTH_OFFSET + max_depth + 1 + methods,) int64
    method_offset: int  # of the first decoding method
    bounds: Tensor  # CONFIDENCE_BOUNDS, float64

    @classmethod
    def zeros(cls, max_depth: int, num_methods: int, device: torch.device) -> "Counters":
        offset, bounds = DEPTH_OFFSET + max_depth + 1, torch.tensor(CONFIDENCE_BOUNDS, dtype=torch.float64)
        return cls(torch.zeros(offset + num_methods, dtype=torch.int64, device=device), offset, bounds.to(device))


@dataclass(frozen=True)
class Filters:
    """What the engine's requests ask for, one entry a row of the batch."""

    top_k: Tensor  # (B,) int32 or int64 >= 1; V or more: all
    top_p: Tensor  # (B,) float32 in (0, 1]
    min_p: Tensor  # (B,) float32 in [0, 1]
    is_any: bool = True  # host-known: False promises that no row asks for any


@dataclass(frozen=True)
class Support:
    """What the filters leave of each row: tokens above `floor`, and the first `num_ties` ids of those that equal it."""

    floor: Tensor  # (S,) int32, the bits of a float32
    num_ties: Tensor  # (S,) int64

    def take(self, index: Tensor) -> "Support":
        """Those of some rows, (n,) int64."""
        return Support(self.floor[index], self.num_ties[index])
