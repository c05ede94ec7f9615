"""One call of the sampler: what LED's rows need, what they get, and where their thinking goes from there."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from led_sglang.integration.scheduler.batch import DeviceRows, LedBatch
from led_sglang.integration.scheduler.methods import registry
from led_sglang.integration.scheduler.methods.edits import edits_of
from led_sglang.integration.scheduler.methods.masks import Draw
from led_sglang.integration.scheduler.runtime import Runtime
from led_sglang.ops import led_step
from led_sglang.ops.policy import led_probs
from led_sglang.ops.rows.filtered_draw import kept_tokens
from led_sglang.ops.types import Filters, LedStep, RowInputs

SANITIZER = 1e30  # SGLang's stand-in for infinity


@dataclass
class StepContext:
    """One call of the sampler that has LED rows."""

    runtime: Runtime
    rows: DeviceRows
    info: Any  # SamplingBatchInfo
    inputs: RowInputs  # before this token, with the step's noise
    is_one_pass: bool = False  # this step's form is one pass
    bench_uniform: Tensor | None = None  # of a benchmark, whose coin says nothing of the cut
    preprocessed: Tensor | None = None  # the engine's logits, before its sampler asks for them
    draws_inactive: bool = False  # this step's tokens outside the phase are LED's to draw too
    is_decided: bool = False
    is_applied: bool = False
    is_finished: bool = False
    step: LedStep | None = None
    failed: bool = False
    overrides: list[registry.Override] = field(default_factory=list)  # tokens that another method forces
    seeded_ids: Tensor | None = None  # (S,) tokens of the seeded rows, for where they are outside their phase
    seeded_rows: Tensor | None = None  # (S,) their rows of the batch
    seeded_active: Tensor | None = None  # (S,) bool: inside their phase after all
    seeded_draw: Draw | None = None  # what those tokens were drawn from, where some row wants its sampling mask

    @classmethod
    def begin(cls, led: LedBatch, info: Any, positions: Tensor, current: Runtime) -> "StepContext":
        rows = led.device_rows(info)
        now = row_inputs(rows, positions, current)
        rate = current.config.bench_explore_rate
        if rate is None:
            return cls(current, rows, info, now)
        coin_uniform, uniform = bench_coins(now.coin_uniform, rate)
        return cls(current, rows, info, replace(now, coin_uniform=coin_uniform), bench_uniform=uniform)

    @property
    def one_pass_uniform(self) -> Tensor:
        """(R,) float64: what `one_pass.one_pass_mask` compares with the cut."""
        return self.inputs.coin_uniform if self.bench_uniform is None else self.bench_uniform

    @property
    def active(self) -> Tensor:
        """(R,) bool"""
        return self.inputs.active

    @property
    def is_active(self) -> Any:
        """The same as numpy sees it. CPU only."""
        return self.inputs.active.numpy()

    def decide(self, logits: Tensor) -> None:
        """Run the LED step on the engine's final logits (B, V), before the engine turns them into probabilities.

        DoLa and Confident Decoding rewrite their rows of `logits` in place, for the engine to sample from.
        """
        self.is_decided = True
        if self.runtime.ranks is not None:
            self.runtime.ranks.check(torch.stack([self.inputs.coin_uniform, self.inputs.token_uniform]))
        engine_logits = logits
        if self.runtime.is_sanitized:
            logits = _as_before_sanitizing(logits)
        for method, group in self.rows.groups.items():
            forced = registry.HANDLERS[method](self, group, logits)
            self.overrides += [forced] if forced is not None else []
        if self.runtime.is_sanitized and self.rows.groups:
            engine_logits.copy_(logits.nan_to_num(nan=-SANITIZER, posinf=SANITIZER, neginf=-SANITIZER))
        head, one_pass_state = self.runtime.head, self.runtime.one_pass_state
        if self.runtime.backend.allows_dynamic_shapes and not self.is_active.any():
            return
        num_rows, num_layers = logits.shape[0], self.runtime.num_led_layers
        assert head is not None
        latents = partial(self.runtime.capture.latents, num_layers, num_rows, self.rows.index)
        params = self.rows.params
        edited = self.rows.edited
        one_pass_state.num_steps["one_pass" if self.is_one_pass else "coin_first"] += 1
        self.runtime.num_engine_head_steps += head.project is not None
        self.step = led_step(
            self.rows.pick(logits),
            latents if num_layers else logits.new_empty(0, self.rows.num_rows, 1),
            head,
            params,
            self.inputs,
            backend=self.runtime.backend,
            known_lse=one_pass_state.known_lse(self.rows, params, num_rows) if self.is_one_pass else None,
            edits=None if edited is None else edits_of(self.info, self.rows.index, edited),
            draws_inactive=self.draws_inactive,
        )

    def draw_seeded(self, probs: Tensor) -> None:
        """A request that named its seed keeps it outside its phase too: the engine ignores seeds by default."""
        picked = self.rows.seeded
        if picked is None or self.info.sampling_seed is not None:
            return
        active = self.active[picked]
        if self.runtime.backend.allows_dynamic_shapes and active.all():
            return
        info = self.info
        batch_rows = picked if self.rows.index is None else self.rows.index[picked]
        is_filtered = info.need_top_k_sampling or info.need_top_p_sampling or info.need_min_p_sampling
        filters = Filters(info.top_ks, info.top_ps, info.min_ps, is_filtered)
        self.seeded_ids, support = self.runtime.backend.sample_filtered(
            probs, batch_rows, active, self.inputs.token_uniform[picked], filters
        )
        self.seeded_rows, self.seeded_active = batch_rows, active
        masked = self.rows.seeded_masked
        if self.mask_rows is not None and masked is not None:
            if self.runtime.backend.allows_dynamic_shapes:
                masked = masked[~active[masked]]
            some = batch_rows[masked]
            # SGLang refuses a mask of a top-k that is not finite.
            ids, weights = kept_tokens(probs, some, support.take(masked), max(info.sampling_mask_top_ks))
            self.seeded_draw = Draw(some, ids, weights, ~active[masked])

    @property
    def mask_rows(self) -> Tensor | None:
        """Rows of the batch that want their sampling masks; None: no row does."""
        rows: Tensor | None = getattr(self.info, "sampling_mask_batch_indices", None)
        return rows

    def draws(self) -> Iterator[Draw]:
        """What the tokens of `apply` were drawn from, in the order in which they were written."""
        if self.step is not None:
            probs = led_probs(self.step, self.rows.params)
            yield Draw(self.rows.in_batch, self.step.candidate_ids, probs, self.active & self.step.ok)
        if self.seeded_draw is not None:
            yield self.seeded_draw
        for rows, forced, is_forced in self.overrides:  # no chance left
            yield Draw(rows, forced[:, None], torch.ones_like(forced[:, None], dtype=torch.float32), is_forced)

    @property
    def is_led_alone(self) -> bool:
        """The batch holds LED's requests only, the engine is to tell no more than tokens, and the host may look."""
        rows, info = self.rows, self.info
        reports_more = info.sampling_seed is not None or self.mask_rows is not None
        return (
            rows.index is None
            and rows.is_led is None
            and not reports_more
            and self.runtime.backend.allows_dynamic_shapes
        )

    @property
    def may_draw_inactive(self) -> bool:
        """LED may sample the rows outside their phase as the engine would: it has their distribution at hand.

        Where the engine would draw from all of it, and no seed has to give the same text in any company.
        """
        info = self.info
        is_filtered = info.need_top_p_sampling or info.need_top_k_sampling or info.need_min_p_sampling
        return self.runtime.backend.draws_inactive and self.rows.seeded is None and not is_filtered

    @property
    def may_decide_alone(self) -> bool:
        """LED may turn out to give every row of a batch its token; one that is all greedy is cheap."""
        if not self.is_led_alone or self.info.is_all_greedy:
            return False
        return bool(self.is_active.any()) if self.may_draw_inactive else bool(self.is_active.all())

    def rows_for_engine(self) -> Tensor | None:
        """Rows of the batch whose token is still the engine's to sample; None: leave all to it.

        On a CPU the engine's draw over the vocabulary costs as much as the whole of LED: nobody waits for a token that
        is not used. All of them: where a request of the batch is not LED's, whose draw from the engine's generator must
        be that of a stock server; where the engine tells more than the token (a seed, a sampling mask).
        """
        if self.step is None or not self.is_led_alone:
            return None
        is_ok = self.step.ok.numpy()
        return torch.from_numpy(np.flatnonzero(~is_ok if self.draws_inactive else ~(self.is_active & is_ok)))

    def apply(self, token_ids: Tensor) -> None:
        """Write the LED tokens over the engine's, in place; rows that are not ok keep the engine's token."""
        if self.is_applied:
            return
        self.is_applied = True
        # First what may fail: the engine's tokens are untouched then. Rows of LED's are neither plain nor another's.
        if self.step is not None:
            self.runtime.backend.write_tokens(self.rows, token_ids, self.inputs, self.step, self.draws_inactive)
        if self.seeded_ids is not None:
            assert self.seeded_rows is not None and self.seeded_active is not None
            kept = token_ids[self.seeded_rows]
            token_ids[self.seeded_rows] = torch.where(self.seeded_active, kept, self.seeded_ids.to(kept.dtype))
        for rows, forced, is_forced in self.overrides:
            token_ids[rows] = torch.where(is_forced, forced.to(token_ids.dtype), token_ids[rows])

    def finish(self, token_ids: Tensor) -> None:
        """Advance the thinking states with the tokens that were really chosen."""
        advance(self.runtime, self.rows, self.inputs, token_ids)
        if self.runtime.ranks is not None:
            self.runtime.ranks.note(self.rows.pick(token_ids).long())
        self.is_finished = True


def bench_coins(uniform: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Coins that explore in a share `rate` of the rows whatever the model's confidence, for benchmarks.

    (R,) float64 in [0, 1) -> (coin, one_pass_uniform), (R,) float64 each: -1 always explores, 1 never does; the second
    keeps the uniform, and lies below every cut where the row explores: cut + (1 - cut) * rate of them are one-pass.
    The low 33 of the uniform's 53 bits are the second stream: it costs a step a handful of launches, not forty.
    """
    explores = uniform.mul(2.0**20).frac_() < rate
    return torch.ones_like(uniform).masked_fill_(explores, -1.0), uniform.masked_fill(explores, -1.0)


def _as_before_sanitizing(logits: Tensor) -> Tensor:
    """SGLANG_SANITIZE_NAN_LOGITS writes 1e30 for infinity and -1e30 for NaN and what a grammar forbids.

    To LED a forbidden token is -inf, or the latent layers could bring it back, and infinity no number.
    """
    forbidden = logits.masked_fill(logits <= -0.1 * SANITIZER, -torch.inf)  # 1e30 itself is rounded in bfloat16
    return forbidden.masked_fill_(logits >= 0.1 * SANITIZER, torch.nan)


def row_inputs(rows: DeviceRows, positions: Tensor, current: Runtime) -> RowInputs:
    """Where our rows stand before this token; positions: (B,)."""
    batch = current.forward_batch
    lengths = None if batch.forward_mode.is_decode() else batch.seq_lens
    return current.backend.row_inputs(rows, batch.req_pool_indices, positions, lengths, current.states)


def advance(current: Runtime, rows: DeviceRows, before: RowInputs, token_ids: Tensor) -> None:
    """The thinking states follow the tokens, (B,)."""
    if current.automaton is not None:
        current.backend.advance(rows, current.tables, current.states, before, token_ids)
