"""One step: `decide` turns inputs and logits into a Decision, which `write` puts over the engine's tokens."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from led_sglang.integration.scheduler.methods import registry
from led_sglang.integration.scheduler.methods.edits import edits_of
from led_sglang.integration.scheduler.methods.masks import Draw
from led_sglang.integration.scheduler.methods.registry import Override
from led_sglang.integration.scheduler.runtime import Runtime
from led_sglang.integration.scheduler.step.inputs import SamplerInputs
from led_sglang.ops import led_step
from led_sglang.ops.edits import LogitEdits
from led_sglang.ops.policy import led_probs
from led_sglang.ops.rows.draft_tree import DraftTree
from led_sglang.ops.rows.filtered_draw import kept_tokens
from led_sglang.ops.types import Filters, KnownLse, LedRows, LedStep, RowInputs, RowMeta

SANITIZER = 1e30  # SGLang's stand-in for infinity


@dataclass(frozen=True)
class SeededDraw:
    """Tokens of requests that named a seed, for where they are outside their phase; the engine ignores seeds there."""

    token_ids: Tensor  # (S,)
    rows: Tensor  # (S,) int64, of the batch
    active: Tensor  # (S,) bool: inside their phase after all
    draw: Draw | None = None  # what those tokens were drawn from, where some row wants its sampling mask


@dataclass(frozen=True)
class Decision:
    """What LED has decided of one step. Rows that it does not name are the engine's."""

    inputs: SamplerInputs
    step: LedStep | None = None  # None: no row is active, or the step failed
    overrides: tuple[Override, ...] = ()  # tokens that another method forces
    seeded: SeededDraw | None = None
    draws_inactive: bool = False  # the step's tokens outside the phase count too

    def rows_for_engine(self) -> Tensor | None:
        """Rows of the batch whose token is still the engine's to sample, (n,) int64; None: all of them.

        On a CPU the engine's draw over the vocabulary costs as much as the whole of LED, and is left out where its
        token is not used. All rows: where a request of the batch is not LED's, whose draw from the engine's generator
        must be that of a stock server; where the engine reports more than the token (a seed, a sampling mask).
        """
        if self.step is None or not self.inputs.is_led_alone:
            return None
        is_ok = self.step.ok.numpy()
        is_decided = is_ok if self.draws_inactive else self.inputs.active_array & is_ok
        return torch.from_numpy(np.flatnonzero(~is_decided))

    def write(self, token_ids: Tensor) -> None:
        """Write the decided tokens over the engine's, (B,), in place; rows that are not ok keep the engine's token."""
        inputs = self.inputs
        # First what may fail: the engine's tokens are untouched then. Rows of LED's are neither seeded nor another's.
        if self.step is not None:
            backend = inputs.runtime.backend
            backend.write_tokens(inputs.rows, token_ids, inputs.row_inputs, self.step, self.draws_inactive)
        if self.seeded is not None:
            rows = self.seeded.rows
            kept = token_ids[rows]
            token_ids[rows] = torch.where(self.seeded.active, kept, self.seeded.token_ids.to(kept.dtype))
        for rows, forced, is_forced in self.overrides:
            token_ids[rows] = torch.where(is_forced, forced.to(token_ids.dtype), token_ids[rows])

    def draws(self) -> Iterator[Draw]:
        """What the tokens of `write` were drawn from, in the order in which they were written."""
        inputs = self.inputs
        if self.step is not None:
            probs = led_probs(self.step, inputs.rows.params)
            yield Draw(inputs.rows.in_batch, self.step.candidate_ids, probs, inputs.active & self.step.ok)
        if self.seeded is not None and self.seeded.draw is not None:
            yield self.seeded.draw
        for rows, forced, is_forced in self.overrides:  # no chance left
            yield Draw(rows, forced[:, None], torch.ones_like(forced[:, None], dtype=torch.float32), is_forced)


def decide(inputs: SamplerInputs, logits: Tensor, draws_inactive: bool = False) -> Decision:
    """Run the LED step on the engine's final logits (B, V), before the engine turns them into probabilities.

    Methods that rewrite logits do so in place, for the engine to sample from.
    """
    current, rows = inputs.runtime, inputs.rows
    if current.ranks is not None:
        current.ranks.check(torch.stack([inputs.row_inputs.coin_uniform, inputs.row_inputs.token_uniform]))
    engine_logits = logits
    if current.is_sanitized:
        logits = before_sanitizing(logits)
    overrides = [registry.HANDLERS[method](inputs, group, logits) for method, group in rows.groups.items()]
    if current.is_sanitized and rows.groups:
        engine_logits.copy_(logits.nan_to_num(nan=-SANITIZER, posinf=SANITIZER, neginf=-SANITIZER))
    decision = Decision(inputs, overrides=tuple(forced for forced in overrides if forced is not None))
    if current.allows_dynamic_shapes and not inputs.active_array.any():
        return decision
    return replace(decision, step=_led_step(inputs, logits, draws_inactive), draws_inactive=draws_inactive)


def _led_step(inputs: SamplerInputs, logits: Tensor, draws_inactive: bool) -> LedStep:
    rows, one_pass_state = inputs.rows, inputs.runtime.one_pass_state
    return run_step(
        inputs.runtime,
        logits,
        rows,
        rows.params,
        inputs.row_inputs,
        known_lse=one_pass_state.known_lse(rows, len(logits)) if inputs.is_one_pass else None,
        edits=None if rows.edited is None else edits_of(inputs.info, rows.index, rows.edited),
        draws_inactive=draws_inactive,
    )


def run_step(
    current: Runtime,
    logits: Tensor,
    meta: RowMeta,
    params: LedRows,
    row_inputs: RowInputs,
    *,
    known_lse: KnownLse | None = None,
    edits: LogitEdits | None = None,
    draws_inactive: bool = False,
    tree: DraftTree | None = None,
) -> LedStep:
    """`ops.led_step` of some rows of the final logits, (B, V), with what the forward has captured and its head."""
    head, num_layers = current.head, current.num_led_layers
    assert head is not None
    latents = partial(current.capture.latents, num_layers, len(logits), meta.index)
    current.one_pass_state.num_steps["coin_first" if known_lse is None else "one_pass"] += 1
    current.num_engine_head_steps += head.project is not None
    return led_step(
        meta.pick(logits),
        latents if num_layers else logits.new_empty(0, meta.num_rows, 1),
        head,
        params,
        row_inputs,
        backend=current.backend,
        known_lse=known_lse,
        edits=edits,
        draws_inactive=draws_inactive,
        tree=tree,
    )


def draw_seeded(inputs: SamplerInputs, probs: Tensor) -> SeededDraw | None:
    """Tokens of the seeded rows from the engine's probabilities (B, V); None: there is nothing to draw."""
    picked, info = inputs.rows.seeded, inputs.info
    if picked is None:
        return None
    active = inputs.active[picked]
    if inputs.runtime.allows_dynamic_shapes and active.all():
        return None
    rows = picked if inputs.rows.index is None else inputs.rows.index[picked]
    filters = Filters(info.top_ks, info.top_ps, info.min_ps, inputs.is_filtered)
    uniform = inputs.row_inputs.token_uniform[picked]
    token_ids, support = inputs.runtime.backend.sample_filtered(probs, rows, active, uniform, filters)
    masked = inputs.rows.seeded_masked
    if inputs.mask_rows is None or masked is None:
        return SeededDraw(token_ids, rows, active)
    if inputs.runtime.allows_dynamic_shapes:
        masked = masked[~active[masked]]
    some = rows[masked]
    # SGLang refuses a mask of a top-k that is not finite.
    ids, weights = kept_tokens(probs, some, support.take(masked), max(info.sampling_mask_top_ks))
    return SeededDraw(token_ids, rows, active, Draw(some, ids, weights, ~active[masked]))


def before_sanitizing(logits: Tensor) -> Tensor:
    """SGLANG_SANITIZE_NAN_LOGITS writes 1e30 for infinity and -1e30 for NaN and what a grammar forbids.

    To LED a forbidden token is -inf, or the latent layers could bring it back, and infinity no number.
    """
    forbidden = logits.masked_fill(logits <= -0.1 * SANITIZER, -torch.inf)  # 1e30 itself is rounded in bfloat16
    return forbidden.masked_fill_(logits >= 0.1 * SANITIZER, torch.nan)
