"""The LED step: one decoded token per row, in pure torch (and Triton), without any engine."""

from dataclasses import replace

import torch
from torch import Tensor

from led_sglang.ops.backend import Backend
from led_sglang.ops.backends.numba import NumbaBackend
from led_sglang.ops.backends.torch import BaselineBackend, TorchBackend
from led_sglang.ops.edits import LogitEdits
from led_sglang.ops.rows.automaton import TextAutomaton, ThinkingAutomaton, ThinkingTables
from led_sglang.ops.rows.draft_tree import DraftTree
from led_sglang.ops.rows.noise import uniforms
from led_sglang.ops.types import (
    Head,
    KnownLse,
    Latents,
    LedRows,
    LedStep,
    RowInputs,
    RowMeta,
    StepInputs,
)

__all__ = [
    "BACKENDS",
    "Backend",
    "DraftTree",
    "Head",
    "KnownLse",
    "LedRows",
    "LedStep",
    "LogitEdits",
    "RowInputs",
    "RowMeta",
    "StepInputs",
    "TextAutomaton",
    "ThinkingAutomaton",
    "ThinkingTables",
    "backend_for",
    "led_step",
    "uniforms",
]

# Legal names, and what they mean; "fused" and "compiled" are older spellings.
BACKENDS = {
    "reference": "reference",
    "eager": "eager",
    "torch": "torch",
    "fused": "torch",
    "numba": "numba",
    "compiled": "numba",
    "triton": "triton",
}


def backend_for(name: str, device: torch.device) -> Backend:
    """The backend of a name for a device: chosen once, when a model is loaded.

    "auto" is "numba" on a CPU, "triton" on CUDA (a server tests it first, `ops.self_test`) and "torch" elsewhere.
    Raises ValueError for another name than "auto" and those of BACKENDS, and for a device that the backend has no code
    for.
    """
    is_cpu = device.type == "cpu"
    if name == "auto":
        name = "numba" if is_cpu else "triton" if device.type == "cuda" else "torch"
    chosen = BACKENDS.get(name)
    if chosen is None:
        raise ValueError(f"unknown LED backend {name!r}; one of auto, {', '.join(BACKENDS)}")
    if chosen == "numba":
        if not is_cpu:
            raise ValueError(f'LED backend "{name}" is for the CPU; this step is on {device}')
        return NumbaBackend()
    if chosen == "triton":
        from led_sglang.ops.backends.triton import TritonBackend  # a machine without a GPU need not have Triton

        if not TritonBackend.runs_on(device):
            raise ValueError(f'LED backend "triton" needs a GPU; this step is on {device}')
        return TritonBackend()
    if chosen == "torch":
        return TorchBackend(allows_dynamic_shapes=is_cpu)
    return BaselineBackend(chosen, allows_dynamic_shapes=is_cpu)


def led_step(
    final_logits: Tensor,
    latents: Latents,
    head: Head,
    rows: LedRows,
    inputs: StepInputs,
    *,
    backend: str | Backend = "auto",
    known_lse: KnownLse | None = None,
    edits: LogitEdits | None = None,
    draws_inactive: bool = False,
    tree: DraftTree | None = None,
) -> LedStep:
    """Decode one token per token row with Latent Exploration Decoding (arXiv 2602.01698).

    Per row, with tau = 1 where greedy and `temperature` elsewhere::

        p[L]    = softmax(final_logits / tau)                     over the full vocabulary
        x       = top-k of final_logits, without those that are -inf, beyond the row's top_k
                  or with p[L] < min_p * max p[L]                 (dropped = probability 0 in EVERY layer)
        p[l]    = softmax(head(h[l]) / tau)                       full vocabulary; no norm unless latent_norm
                  and with edits e:  exp(e(head(h[l])) / tau) / max(Z, Ze), where Z and Ze are the sums over the full
                  vocabulary of exp(head(h[l]) / tau) and exp(e(head(h[l])) / tau)
        q[l]    = p[l][x]                                         / sum(q[l]) where normalize_layers
        agg[j]  = normalise(q[L] + ... + q[L-j+1])                j = 1..depth; j = 1 is the final layer alone
        exploit = agg[1];  explore = agg[argmax_j entropy(agg[j])]            ties to the smallest j
        c       = max p[L]
        branch  = explore  if active and (not exploit_allowed or coin_uniform < 1 - c)  else  exploit
        token   = x[inverse CDF of branch at token_uniform], where greedy x[argmax branch]
        logprob = log(c * exploit[token] + (1 - c) * explore[token]),   log explore[token] where exploit is False

    Shapes and types:
        final_logits (R, V): any float type and strides, the engine's logits after penalties, bias and grammar mask and
            BEFORE temperature, full vocabulary on every rank; -inf means forbidden.
        latents (D, R, H): latents[j] = h[L-1-j], the un-normed residual stream in the model's dtype. A row reads
            latents[j + latent_offset] for j < depth - 1, so D >= max(depth - 1 + latent_offset). A function that
            returns them is called at most once; "numba" calls it only if some row needs them.
        known_lse: what the one-pass form (`ops.backends.one_pass`) knows already, for at least max_depth - 1 layers; a
            second pass computes the rows that need their latents and lack it, so the result is the same.
            Backends "torch", "numba" and "triton" only.
        edits: the penalties and bias that the engine applied to `final_logits`, to be applied to the latent layers too;
            None: there are none. Z above is why a ban lowers p[l] of its token by at least exp(bias / tau) in any
            layer, and why a token banned by -1e4 and one forbidden by -inf leave the same probabilities to the others.
            Rows with edits ignore what is known. "triton" decides them with plain torch.
        draws_inactive: rows that are not active are given a token too, of the final layer's whole distribution. Backend
            "numba" only.
        tree: the rows are the nodes of draft trees, R = B * N. Those that cannot be accepted whatever the latent layers
            say cost no latent work and come back with ok = False. None: every row is a request's next token.
        head, rows, inputs and the result: see `led_sglang.ops.types`. V may be smaller than K: the tail of
            `candidate_ids` is then 0 with probability 0. Columns beyond a whole head's num_rows are ignored.

    Nothing is modified. Equal inputs on all tensor-parallel ranks give equal results on all ranks; with a sharded head
    a step makes at most ONE collective, and makes it on every rank or on none.

    Rows with NaN or +inf or nothing but -inf in their final logits, and rows whose latents were needed and gave a
    non-finite result, come back with ok = False and some valid token id; no input value raises. R = 0 is allowed.

    Raises ValueError for a backend that is unknown or has no code for the device, for fewer latent layers than the
    deepest row needs, and for known_lse or draws_inactive with a backend that cannot use them.

    backend: a `Backend` of `backend_for`, or a name, which is looked up at every call. "reference" float64 loops, to
    learn from and to test against (whole head only); "eager" plain torch over all rows and depths, a baseline for
    benchmarks and the truth of the self test; "torch", also "fused": coin first, only the rows that need it go through
    the head, and their (rows, V) logits are never held; "numba", also "compiled": the same on a CPU with compiled loops
    over candidates and layers; "triton": the same in a handful of kernels, which skip the rows that exploit without
    asking the host. Graph-safe on CUDA: "torch", "triton" and "eager" (no host sync, shapes fixed by R, D, K and the
    host-known fields of `rows`; "torch" sends all rows through the head there). On a CPU "torch" and "numba" compact
    rows by index: `Backend.allows_dynamic_shapes`.
    """
    chosen = backend_for(backend, final_logits.device) if isinstance(backend, str) else backend
    if draws_inactive and not chosen.draws_inactive:
        raise ValueError(f'backend "{chosen.public_name}" decodes active rows only: `draws_inactive` is for "numba"')
    if not callable(latents) and len(latents) < rows.max_depth - 1:
        raise ValueError(f"depth {rows.max_depth} needs {rows.max_depth - 1} latent layers, got {len(latents)}")
    if head.all_gather is None and final_logits.shape[1] > head.num_rows:  # columns of padding
        final_logits = final_logits[:, : head.num_rows]
    if known_lse is not None:
        if not chosen.supports_one_pass:
            raise ValueError(
                f'backend "{chosen.public_name}" computes every row itself: `known_lse` is for torch, numba and triton'
            )
        if len(known_lse.lse) < rows.max_depth - 1:
            raise ValueError(
                f"depth {rows.max_depth} needs {rows.max_depth - 1} layers, {len(known_lse.lse)} are known"
            )
        known_lse = _unedited(known_lse, edits)
    return chosen.step(
        final_logits,
        latents,
        head,
        rows,
        inputs,
        known_lse=known_lse,
        edits=edits,
        draws_inactive=draws_inactive,
        tree=tree,
    )


def _unedited(known_lse: KnownLse, edits: LogitEdits | None) -> KnownLse | None:
    """Known log-sum-exps are without edits: only rows without edits may use them."""
    if edits is None or edits.edited is None:
        return known_lse if edits is None else None
    return replace(known_lse, has_lse=known_lse.has_lse.index_fill(0, edits.edited, False), is_complete=False)
