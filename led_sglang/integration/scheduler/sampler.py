"""Our sampler over the user's: the engine samples every row as ever, LED rows inside their phase get LED's token."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from led_sglang.integration.scheduler.batch import LedBatch
from led_sglang.integration.scheduler.methods import masks
from led_sglang.integration.scheduler.methods.edits import unedited_logits
from led_sglang.integration.scheduler.ranks import RankDivergence
from led_sglang.integration.scheduler.records import StepRecord
from led_sglang.integration.scheduler.runtime import Runtime, count_failure, fail_step, runtime
from led_sglang.integration.scheduler.step import StepContext, advance, row_inputs
from led_sglang.wire import RECORD_KEY


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
        self.led_context = None
        if not current.has_forward_failed:
            self.led_context = getattr(current.forward_batch, "led_context", None)  # begun before the forward
            if self.led_context is None and led.our_rows:
                self.led_context = _attempt(current, StepContext.begin, led, sampling_info, positions, current)
        try:
            reports_more = return_logprob or any(value is not None for value in kw.values())
            token_ids = None if reports_more else self._decide_alone(logits_output, sampling_info)
            if token_ids is None:
                token_ids = forward(logits_output, sampling_info, return_logprob, top, ids, positions, **kw)
            if led.our_rows and not (self.led_context and self.led_context.is_finished):
                _guarded_advance(led, sampling_info, positions, current, token_ids)
            if led.returns_masks and self.led_context is not None:
                _guarded_masks(self.led_context, logits_output, token_ids)
            record = _guarded_record(led, self.led_context, current)
        finally:
            self.led_context = None
        if record is not None:
            logits_output.customized_info = {**(logits_output.customized_info or {}), RECORD_KEY: record}
        return token_ids

    def _decide_alone(self, logits_output: Any, sampling_info: Any) -> Tensor | None:
        """(B,) int32, as the engine's draw, where LED decides every row and nobody asks for more; else None.

        On a CPU the engine's probabilities and its draw cost as much as LED: nobody waits for what is not used.
        """
        context = self.led_context
        if context is None or not _attempt(context.runtime, getattr, context, "may_decide_alone"):
            return None
        context.draws_inactive = context.may_draw_inactive
        logits = context.preprocessed = self._preprocess_logits(logits_output.next_token_logits, sampling_info)
        rows_for_engine = _attempt(context.runtime, context.rows_for_engine)
        if rows_for_engine is None or len(rows_for_engine):
            return None
        token_ids = torch.zeros(len(logits), dtype=torch.int32)
        _guard(context, context.apply, token_ids)
        if context.failed:  # then the engine's tokens are wanted after all
            return None
        self._sync_token_ids_across_tp(token_ids, sampling_info)
        return token_ids

    def _preprocess_logits(self, logits: Tensor, sampling_info: Any) -> Tensor:
        context = self.led_context
        if context is not None and context.preprocessed is not None:
            known, context.preprocessed = context.preprocessed, None
            return known
        result: Tensor = super()._preprocess_logits(logits, sampling_info)  # type: ignore[misc]
        if context is not None and not context.is_decided:
            _guard(context, context.decide, result)
        return result

    def _sample_from_probs(
        self, probs: Tensor, sampling_info: Any, positions: Tensor, simple_sampling_case: bool, *args: Any, **kw: Any
    ) -> Any:
        context, sample = self.led_context, super()._sample_from_probs  # type: ignore[misc]
        if context is not None and context.rows.seeded is not None:
            _guard(context, context.draw_seeded, probs)
        rows = None
        if context is not None and simple_sampling_case:
            rows = _attempt(context.runtime, context.rows_for_engine)

        def sample_rows(rows: Tensor) -> Any:
            return sample(
                probs.index_select(0, rows),
                sampling_info,
                positions.index_select(0, rows),
                simple_sampling_case,
                *args,
                **kw,
            )

        if context is not None and rows is not None:
            drawn = _attempt(context.runtime, _draw_some, context, rows, len(probs), sample_rows)
            if drawn is not None:
                return drawn
        return sample(probs, sampling_info, positions, simple_sampling_case, *args, **kw)

    def _sync_token_ids_across_tp(self, token_ids: Tensor, sampling_info: Any) -> None:
        context = self.led_context
        if context is not None:
            _guard(context, context.apply, token_ids)
        super()._sync_token_ids_across_tp(token_ids, sampling_info)  # type: ignore[misc]
        if context is not None:
            _guarded_finish(context, token_ids)


FAILED = object()


def _attempt(current: Runtime, action: Any, *args: Any, failed: Any = None) -> Any:
    """The action's result; `failed` after a fault of ours, which must not take the scheduler down and is counted."""
    try:
        return action(*args)
    except RankDivergence:
        raise
    except Exception:
        fail_step(current, getattr(action, "__qualname__", repr(action)))
        return failed


def _guard(context: StepContext, action: Any, *args: Any) -> None:
    """The same where the step cannot go on after it: it keeps the engine's tokens."""
    if _attempt(context.runtime, action, *args, failed=FAILED) is FAILED:
        context.step, context.failed, context.overrides = None, True, []
        context.runtime.forget_mixtures(context.inputs.slots)


def _draw_some(context: StepContext, rows: Tensor, num_rows: int, sample: Any) -> Any:
    """What the engine's sampler gives for these rows alone, with LED's tokens in the others; None if LED's failed."""
    if not len(rows):  # what it returns beside tokens is wanted
        rows = torch.zeros(1, dtype=torch.int64)
    drawn = sample(rows)
    token_ids, *rest = drawn if isinstance(drawn, tuple) else (drawn,)
    whole = token_ids.new_zeros(num_rows).index_copy_(0, rows, token_ids)
    _guard(context, context.apply, whole)
    if context.failed:  # then the engine's tokens are wanted after all
        return None
    return (whole, *rest) if rest else whole


def _guarded_finish(context: StepContext, token_ids: Tensor) -> None:
    """Unlike `_guard`: LED's tokens are in place by now, and the record goes on saying so."""
    _attempt(context.runtime, context.finish, token_ids)


def _guarded_advance(led: LedBatch, info: Any, positions: Tensor, current: Runtime, token_ids: Tensor) -> None:
    """After a step that failed: the requests' thinking states follow the engine's tokens all the same."""

    def follow() -> None:
        rows = led.device_rows(info)
        before = row_inputs(rows, positions, current)
        current.forget_mixtures(before.slots)
        advance(current, rows, before, token_ids)

    _attempt(current, follow)


def _guarded_masks(context: StepContext, output: Any, token_ids: Tensor) -> None:
    """Tokens are in place by now: a mask that cannot be told of LED's draw is not told of the engine's."""
    reported = getattr(output, "sampling_mask_output", None)
    if reported is None:
        return
    try:
        masks.write(reported, context.draws(), token_ids, context.info)
    except Exception:
        fail_step(context.runtime)
        masks.forget(reported, context.rows.in_batch, len(token_ids), context.info)


def _guarded_record(led: LedBatch, context: StepContext | None, current: Runtime) -> StepRecord | None:
    """None: not even that the step failed can be recorded."""
    for known in (context, None):
        try:
            return StepRecord.of(led, known, current)
        except Exception:
            count_failure(current, "StepRecord.of")
    return None


def unedited_logits_of(current: Runtime, forward_batch: Any, logits: Tensor) -> dict[str, Tensor]:
    """`edits.unedited_logits` of a step, before the engine edits its logits (B, V)."""
    info = forward_batch.sampling_info
    return _attempt(current, unedited_logits, getattr(info, "led", None), info, logits) or {}


def before_forward(current: Runtime, forward_batch: Any) -> None:
    """What rides must be known before the forward: a decode step of the one-pass form begins here."""
    one_pass_state, led = current.one_pass_state, getattr(forward_batch.sampling_info, "led", None)
    current.has_forward_failed = False
    one_pass_state.clear()
    if not forward_batch.forward_mode.is_decode():
        current.forget_mixtures(forward_batch.req_pool_indices)
        return
    if led is None:
        return
    if led.lost_rows:
        current.forget_mixtures(forward_batch.req_pool_indices[list(led.lost_rows)])
    if not led.our_rows or one_pass_state.form(len(led.request_rows)) != "one_pass":
        return
    current.forward_batch = forward_batch
    try:
        context = _attempt(current, _begin_one_pass, led, forward_batch, current)
    finally:
        current.forward_batch = None
    if context is None:
        one_pass_state.is_one_pass = False
    else:
        forward_batch.led_context = context


def _begin_one_pass(led: LedBatch, forward_batch: Any, current: Runtime) -> StepContext:
    context = StepContext.begin(led, forward_batch.sampling_info, forward_batch.positions, current)
    inputs = replace(context.inputs, coin_uniform=context.one_pass_uniform)
    current.one_pass_state.fill_one_pass_mask(context.rows, context.rows.params, inputs, len(led.request_rows))
    context.is_one_pass = True
    return context


def wrap_sampler(sampler: Any) -> Any:
    """Put LED over a sampler the engine made, whatever its class."""
    base = type(sampler)
    sampler.__class__ = type(f"Led{base.__name__}", (LedSamplerMixin, base), {})
    sampler.led_context = None
    sampler.output_logprob_processor = LogprobsAfterLed(sampler.output_logprob_processor, sampler)
    return sampler
