"""The LED step: one decoded token per row, in pure torch (and Triton), without any engine."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from led_sglang.ops import arrays, reference
from led_sglang.ops.backends import eager, numba_step, one_pass, torch_step, triton_step
from led_sglang.ops.edits import LogitEdits
from led_sglang.ops.rows.automaton import ThinkingAutomaton, ThinkingTables
from led_sglang.ops.rows.noise import uniforms
from led_sglang.ops.types import Head, KnownLse, Latents, LedRows, LedStep, Noise

__all__ = [
    "BACKENDS",
    "Head",
    "KnownLse",
    "LedRows",
    "LedStep",
    "LogitEdits",
    "Noise",
    "ThinkingAutomaton",
    "ThinkingTables",
    "chosen_backend",
    "led_step",
    "uniforms",
]

Backend = Callable[..., LedStep]  # (final_logits, latents, head, rows, noise, edits=); in one_pass.BACKENDS also ridden

BACKENDS: dict[str, Backend] = {
    "reference": reference.led_step,
    "eager": eager.led_step,
    "fused": torch_step.led_step,
    "compiled": numba_step.led_step,
    "triton": triton_step.led_step,
}


def led_step(
    final_logits: Tensor,
    latents: Latents,
    head: Head,
    rows: LedRows,
    noise: Noise,
    *,
    backend: str = "auto",
    known_lse: KnownLse | None = None,
    edits: LogitEdits | None = None,
) -> LedStep:
    """Decode one token per row with Latent Exploration Decoding (arXiv 2602.01698).

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
        branch  = explore  if active and (not exploit_allowed or coin < 1 - c)  else  exploit
        token   = x[inverse CDF of branch at noise.token_uniform], where greedy x[argmax branch]
        logprob = log(c * exploit[token] + (1 - c) * explore[token]),   log explore[token] where exploit is False

    Shapes and types:
        final_logits (R, V): any float type and strides, the engine's logits after penalties, bias and grammar mask and
            BEFORE temperature, full vocabulary on every rank; -inf means forbidden.
        latents (D, R, H): latents[j] = h[L-1-j], the un-normed residual stream in the model's dtype. A row reads
            latents[j + latent_offset] for j < depth - 1, so D >= max(depth - 1 + latent_offset). A function that
            returns them is called at most once; "compiled" calls it only if some row needs them.
        known_lse: what the one-pass form (`ops.backends.one_pass`) knows already, for at least max_depth - 1 layers; a
            second pass computes the rows that need their latents and lack it, so the result is the same.
            Backends "fused", "compiled" and "triton" only.
        edits: the penalties and bias that the engine applied to `final_logits`, to be applied to the latent layers too;
            None: there are none. Z above is why a ban lowers p[l] of its token by at least exp(bias / tau) in any
            layer, and why a token banned by -1e4 and one forbidden by -inf leave the same probabilities to the others.
            Rows with edits ignore what is known. "triton" decides them with plain torch.
        head, rows, noise and the result: see `led_sglang.ops.types`. V may be smaller than K: the tail of
            `candidate_ids` is then 0 with probability 0. Columns beyond a whole head's num_rows are ignored.

    Nothing is modified. Equal inputs on all tensor-parallel ranks give equal results on all ranks; with a sharded head
    a step makes at most ONE collective, and makes it on every rank or on none.

    Rows with NaN or +inf or nothing but -inf in their final logits, and rows whose latents were needed and gave a
    non-finite result, come back with ok = False and some valid token id; no input value raises. R = 0 is allowed.

    Backends: "reference" float64 loops, to learn from and to test against (whole head only); "eager" plain torch over
    all rows and depths; "fused" draws the coin first and sends only the rows that need it through the head, without
    ever holding their (rows, V) logits; "compiled" is "fused" on a CPU with compiled loops over candidates and layers;
    "triton" is "fused" in a handful of kernels, and skips the rows that exploit without asking the host. "auto" is
    "compiled" on the CPU, "triton" on CUDA (a server looks first, `ops.backends.self_test`) and "fused" elsewhere.
    Graph-safe: "fused" and "triton" on CUDA (no host sync, shapes fixed by R, D, K and the host-known fields of `rows`;
    "fused" sends all rows through the head there). On CPU they compact rows by index. "eager" is; "reference" is not.
    The division is `led_sglang.ops.arrays.allows_dynamic_shapes`.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"unknown LED backend {backend!r}; one of auto, {', '.join(BACKENDS)}")
    chosen = chosen_backend(backend, final_logits.device)
    if callable(latents) and chosen != "compiled":
        latents = latents()
    if rows.draws_inactive and chosen != "compiled":
        raise ValueError(
            f'backend {chosen!r} draws no token for rows that are not active: `draws_plain` is for "compiled"'
        )
    if not callable(latents) and latents.shape[0] < rows.max_depth - 1:
        raise ValueError(f"depth {rows.max_depth} needs {rows.max_depth - 1} latent layers, got {latents.shape[0]}")
    if head.all_gather is None and final_logits.shape[1] > head.num_rows:  # columns of padding
        final_logits = final_logits[:, : head.num_rows]
    if known_lse is None:
        return BACKENDS[chosen](final_logits, latents, head, rows, noise, edits=edits)
    if chosen not in one_pass.BACKENDS:
        able = ", ".join(one_pass.BACKENDS)
        raise ValueError(f"backend {chosen!r} computes every latent row itself: `known_lse` is for {able}")
    if len(known_lse.lse) < rows.max_depth - 1:
        raise ValueError(f"depth {rows.max_depth} needs {rows.max_depth - 1} layers, {len(known_lse.lse)} are known")
    return BACKENDS[chosen](
        final_logits, latents, head, rows, noise, known_lse=_unedited(known_lse, edits), edits=edits
    )


def _unedited(known_lse: KnownLse, edits: LogitEdits | None) -> KnownLse | None:
    """Known log-sum-exps are without edits: only rows without edits may use them."""
    if edits is None or edits.edited is None:
        return known_lse if edits is None else None
    return replace(known_lse, has_lse=known_lse.has_lse.index_fill(0, edits.edited, False), is_complete=False)


def chosen_backend(requested: str, device: torch.device) -> str:
    """What "auto" means on a device; any other name is itself."""
    if requested != "auto":
        return requested
    return "compiled" if arrays.allows_dynamic_shapes(device) else "triton" if device.type == "cuda" else "fused"
