"""Our sampler over the user's: the engine samples every row as ever, LED rows inside their phase get LED's token."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from led_sglang.integration import transforms
from led_sglang.integration.batch import DeviceRows, LedBatch, activate
from led_sglang.integration.ranks import RankDivergence
from led_sglang.integration.records import RECORD_KEY, StepRecord
from led_sglang.integration.runtime import Runtime, count_failure, runtime
from led_sglang.ops import led_step
from led_sglang.ops.plain import sample_filtered
from led_sglang.ops.types import LedStep, Noise

SANITIZER = 1e30  # SGLang's stand-in for infinity


@dataclass
class StepContext:
    """One call of the sampler that has LED rows."""

    runtime: Runtime
    rows: DeviceRows
    info: Any  # SamplingBatchInfo
    states: Tensor  # (R,) thinking states before this token
    slots: Tensor  # (R,)
    thinking: Tensor  # (R,) bool
    active: Tensor  # (R,) bool
    noise: Tensor  # (2, R)
    positions: Tensor  # (R,) int64
    is_riding: bool = False  # this step's form is one pass
    is_decided: bool = False
    is_applied: bool = False
    is_finished: bool = False
    step: LedStep | None = None
    failed: bool = False
    overrides: list[transforms.Override] = field(default_factory=list)  # tokens that another method forces
    plain_ids: Tensor | None = None  # (S,) tokens of the seeded rows, for where they are outside their phase
    plain_rows: Tensor | None = None  # (S,) their rows of the batch
    plain_active: Tensor | None = None  # (S,) bool: inside their phase after all

    @classmethod
    def begin(cls, led: LedBatch, info: Any, positions: Tensor, current: Runtime) -> "StepContext":
        rows = led.device_rows(info)
        slots, states = _states_before(rows, len(led.seats), current)
        if current.machine is None:
            thinking = torch.zeros_like(rows.phase_all)
        else:
            thinking = current.tables.thinking(states)
        active = thinking | rows.phase_all if rows.any_phase_all else thinking
        if rows.is_led is not None:
            active = active & rows.is_led
        row_positions = rows.pick(positions[: len(led.seats)]).long()
        noise = rows.noise.at(row_positions)
        rate = current.config.bench_explore_rate
        if rate is not None:  # a benchmark: coin 0 always explores, coin 1 never does
            noise = torch.stack([(noise[0] >= rate).to(noise.dtype), noise[1]])
        return cls(current, rows, info, states, slots, thinking, active, noise, row_positions)

    def decide(self, logits: Tensor) -> None:
        """Run the LED step on the engine's final logits (B, V), before the engine turns them into probabilities.

        DoLa and Confident Decoding rewrite their rows of `logits` in place, for the engine to sample from.
        """
        self.is_decided = True
        if self.runtime.ranks is not None:
            self.runtime.ranks.check(self.noise)
        engine_logits = logits
        if self.runtime.is_sanitized:
            logits = _as_before_sanitizing(logits)
        for method, group in self.rows.groups.items():
            forced = transforms.HANDLERS[method](self, group, logits)
            self.overrides += [forced] if forced is not None else []
        if self.runtime.is_sanitized and self.rows.groups:
            engine_logits.copy_(logits.nan_to_num(nan=-SANITIZER, posinf=SANITIZER, neginf=-SANITIZER))
        capture, head = self.runtime.capture, self.runtime.head
        if logits.device.type == "cpu" and not any(self.active.tolist()):
            return
        num_rows = logits.shape[0]
        if capture.buffer is None:
            buffer = logits.new_empty(0, num_rows, 1)
        else:
            buffer = capture.buffer[: self.runtime.num_led_layers, :num_rows]
        latents = buffer if self.rows.index is None else buffer.index_select(1, self.rows.index)
        assert head is not None
        ride, params = self.runtime.ride, activate(self.rows.params, self.active)
        ride.num_steps["one_pass" if self.is_riding else "coin_first"] += 1
        self.runtime.num_engine_head_steps += head.project is not None
        self.step = led_step(
            self.rows.pick(logits),
            latents,
            head,
            params,
            Noise(self.noise[0], self.noise[1]),
            backend=self.runtime.config.backend,
            ridden=ride.ridden(self.rows, params, num_rows) if self.is_riding else None,
        )

    def decide_plain(self, probs: Tensor) -> None:
        """A request that named its seed keeps it outside its phase too: the engine ignores seeds by default."""
        picked = self.rows.seeded
        if picked is None or self.info.sampling_seed is not None:
            return
        if probs.device.type == "cpu" and bool(self.active.all()):
            return
        batch_rows = picked if self.rows.index is None else self.rows.index[picked]
        info = self.info
        self.plain_ids = sample_filtered(
            probs[batch_rows],
            info.top_ks[batch_rows],
            info.top_ps[batch_rows],
            info.min_ps[batch_rows],
            self.noise[1][picked],
        )
        self.plain_rows, self.plain_active = batch_rows, self.active[picked]

    def apply(self, token_ids: Tensor) -> None:
        """Write the LED tokens over the engine's, in place; rows that are not ok keep the engine's token."""
        if self.is_applied:
            return
        self.is_applied = True
        if self.plain_ids is not None:
            assert self.plain_rows is not None and self.plain_active is not None
            kept = token_ids[self.plain_rows]
            token_ids[self.plain_rows] = torch.where(self.plain_active, kept, self.plain_ids.to(kept.dtype))
        for rows, forced, is_forced in self.overrides:
            token_ids[rows] = torch.where(is_forced, forced.to(token_ids.dtype), token_ids[rows])
        if self.step is None:
            return
        engine_ids = self.rows.pick(token_ids)
        chosen = torch.where(self.active & self.step.ok, self.step.token_ids.to(engine_ids.dtype), engine_ids)
        if self.rows.index is None:
            token_ids.copy_(chosen)
        else:
            token_ids[self.rows.index] = chosen

    def finish(self, token_ids: Tensor) -> None:
        """Advance the thinking states with the tokens that were really chosen."""
        chosen = self.rows.pick(token_ids).long()
        _advance(self.runtime, self.slots, self.states, chosen)
        if self.runtime.ranks is not None:
            self.runtime.ranks.note(chosen)
        self.is_finished = True


def _as_before_sanitizing(logits: Tensor) -> Tensor:
    """SGLANG_SANITIZE_NAN_LOGITS writes 1e30 for infinity and -1e30 for NaN and what a grammar forbids.

    To LED a forbidden token is -inf, or the latent layers could bring it back, and infinity no number.
    """
    forbidden = logits.masked_fill(logits <= -0.1 * SANITIZER, -torch.inf)  # 1e30 itself is rounded in bfloat16
    return forbidden.masked_fill_(logits >= 0.1 * SANITIZER, torch.nan)


def _states_before(rows: DeviceRows, num_rows: int, current: Runtime) -> tuple[Tensor, Tensor]:
    """Slots of our rows and their thinking states before this token: (R,), (R,)."""
    batch = current.forward_batch
    slots = rows.pick(batch.req_pool_indices[:num_rows])
    states = current.states[slots]
    if not batch.forward_mode.is_decode():
        is_start = rows.pick(batch.seq_lens[:num_rows]) == rows.start_length
        states = torch.where(is_start, rows.start_state, states)
    return slots, states


def _advance(current: Runtime, slots: Tensor, states: Tensor, token_ids: Tensor) -> None:
    if current.machine is not None:
        current.states[slots] = current.tables.advance(states, token_ids)


class LogprobsAfterLed:
    """The engine's logprob processor, shown the LED tokens instead of the engine's."""

    def __init__(self, inner: Any, sampler: "LedSamplerMixin") -> None:
        self._inner = inner
        self._sampler = sampler

    def compute_logprobs(self, logprobs: Any, top: Any, ids: Any, token_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        context = self._sampler.led_context
        if context is not None:
            _guard(context, context.apply, token_ids)
        return self._inner.compute_logprobs(logprobs, top, ids, token_ids, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class LedSamplerMixin:
    """Mixed into the class of the sampler that the engine created."""

    led_context: StepContext | None

    def forward(
        self,
        logits_output: Any,
        sampling_info: Any,
        return_logprob: bool,
        top: Any,
        ids: Any,
        positions: Tensor,
        **kw: Any,
    ) -> Tensor:
        """Same contract as `Sampler.forward`; batches without LED rows take the engine's path untouched."""
        led: LedBatch | None = getattr(sampling_info, "led", None)
        current = runtime()
        forward = super().forward  # type: ignore[misc]
        if led is None or current is None:
            return forward(logits_output, sampling_info, return_logprob, top, ids, positions, **kw)
        self.led_context = getattr(current.forward_batch, "led_context", None)  # begun before the forward
        if self.led_context is None and led.our_rows:
            self.led_context = _guarded_begin(led, sampling_info, positions, current)
        try:
            token_ids: Tensor = forward(logits_output, sampling_info, return_logprob, top, ids, positions, **kw)
            if led.our_rows and not (self.led_context and self.led_context.is_finished):
                _guarded_advance(led, sampling_info, current, token_ids)
            record = _guarded_record(led, self.led_context, current)
        finally:
            self.led_context = None
        logits_output.customized_info = {**(logits_output.customized_info or {}), RECORD_KEY: record}
        return token_ids

    def _preprocess_logits(self, logits: Tensor, sampling_info: Any) -> Tensor:
        result: Tensor = super()._preprocess_logits(logits, sampling_info)  # type: ignore[misc]
        if self.led_context is not None and not self.led_context.is_decided:
            _guard(self.led_context, self.led_context.decide, result)
        return result

    def _sample_from_probs(self, probs: Tensor, sampling_info: Any, positions: Tensor, *args: Any, **kw: Any) -> Any:
        context = self.led_context
        if context is not None and context.rows.seeded is not None:
            _guard(context, context.decide_plain, probs)
        return super()._sample_from_probs(probs, sampling_info, positions, *args, **kw)  # type: ignore[misc]

    def _sync_token_ids_across_tp(self, token_ids: Tensor, sampling_info: Any) -> None:
        context = self.led_context
        if context is not None:
            _guard(context, context.apply, token_ids)
        super()._sync_token_ids_across_tp(token_ids, sampling_info)  # type: ignore[misc]
        if context is not None:
            _guarded_finish(context, token_ids)


def _guard(context: StepContext, action: Any, *args: Any) -> None:
    """A fault of ours must not take the scheduler down: the step keeps the engine's tokens and is counted."""
    try:
        action(*args)
    except RankDivergence:
        raise
    except Exception:
        count_failure(context.runtime)
        context.step, context.failed = None, True


def _guarded_begin(led: LedBatch, info: Any, positions: Tensor, current: Runtime) -> StepContext | None:
    try:
        return StepContext.begin(led, info, positions, current)
    except Exception:
        count_failure(current)
        return None


def _guarded_finish(context: StepContext, token_ids: Tensor) -> None:
    """Unlike `_guard`: LED's tokens are in place by now, and the record goes on saying so."""
    try:
        context.finish(token_ids)
    except Exception:
        count_failure(context.runtime)


def _guarded_advance(led: LedBatch, info: Any, current: Runtime, token_ids: Tensor) -> None:
    """After a step that failed: the requests' thinking states follow the engine's tokens all the same."""
    try:
        rows = led.device_rows(info)
        slots, states = _states_before(rows, len(led.seats), current)
        _advance(current, slots, states, rows.pick(token_ids).long())
    except Exception:
        count_failure(current)


def _guarded_record(led: LedBatch, context: StepContext | None, current: Runtime) -> StepRecord:
    try:
        return StepRecord.of(led, context)
    except Exception:
        count_failure(current)
        return StepRecord.of(led, None)


def before_forward(current: Runtime, forward_batch: Any) -> None:
    """What rides must be known before the forward: a decode step of the one-pass form begins here."""
    ride, led = current.ride, getattr(forward_batch.sampling_info, "led", None)
    ride.clear()
    if not forward_batch.forward_mode.is_decode():
        return
    if led is None or not led.our_rows or ride.form(len(led.seats)) != "one_pass":
        return
    current.forward_batch = forward_batch
    try:
        context = StepContext.begin(led, forward_batch.sampling_info, forward_batch.positions, current)
        ride.board(context.rows, activate(context.rows.params, context.active), context.noise[0], len(led.seats))
        context.is_riding = True
        forward_batch.led_context = context
    except Exception:
        count_failure(current)
        ride.is_boarding = False
    finally:
        current.forward_batch = None


def dress(sampler: Any) -> Any:
    """Put LED over a sampler the engine made, whatever its class."""
    base = type(sampler)
    sampler.__class__ = type(f"Led{base.__name__}", (LedSamplerMixin, base), {})
    sampler.led_context = None
    sampler.output_logprob_processor = LogprobsAfterLed(sampler.output_logprob_processor, sampler)
    return sampler
