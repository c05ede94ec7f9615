"""Our sampler over the user's: LED rows inside their phase get LED's token, the engine samples the others as ever.

On a CPU, in a batch of LED's requests alone, the engine's draw is left out for rows that LED has decided.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from led_sglang.integration.scheduler.batch import LedBatch
from led_sglang.integration.scheduler.methods import masks
from led_sglang.integration.scheduler.methods.edits import unedited_logits
from led_sglang.integration.scheduler.pipeline.outputs import StageOutput
from led_sglang.integration.scheduler.reports.records import StepRecord
from led_sglang.integration.scheduler.runtime import Runtime, runtime
from led_sglang.integration.scheduler.stage import count_failure, fail_step
from led_sglang.integration.scheduler.step.call import SamplerCall, attempt
from led_sglang.integration.scheduler.step.inputs import SamplerInputs
from led_sglang.wire import RECORD_KEY

if TYPE_CHECKING:
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.layers.sampler import LogprobProcessor, Sampler
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo


class LogprobsAfterLed:
    """The engine's logprob processor, shown the LED tokens instead of the engine's."""

    def __init__(self, inner: "LogprobProcessor", sampler: "LedSamplerMixin") -> None:
        self._inner = inner
        self._sampler = sampler

    def compute_logprobs(
        self,
        logprobs: Tensor,
        top: list[int],
        ids: list[list[int]],
        token_ids: Tensor,
        *args: object,
        **kwargs: object,
    ) -> Any:
        if self._sampler.led_call is not None:
            self._sampler.led_call.write(token_ids)
        return self._inner.compute_logprobs(logprobs, top, ids, token_ids, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class LedSamplerMixin:
    """Mixed into the class of the sampler that the engine created."""

    led_call: SamplerCall | None

    def forward(
        self,
        logits_output: "LogitsProcessorOutput",
        sampling_info: "SamplingBatchInfo",
        return_logprob: bool,
        top: list[int],
        ids: list[list[int]],
        positions: Tensor,
        **kw: object,
    ) -> Tensor:
        """Same contract as `Sampler.forward`; batches without LED rows take the engine's path untouched."""
        led: LedBatch | None = getattr(sampling_info, "led", None)
        current = runtime()
        forward = super().forward  # type: ignore[misc]
        if led is None or current is None:
            return forward(logits_output, sampling_info, return_logprob, top, ids, positions, **kw)
        self.led_call = call = _begin(led, sampling_info, positions, current)
        try:
            reports_more = return_logprob or any(value is not None for value in kw.values())
            token_ids = None if reports_more else self._decide_alone(logits_output, sampling_info)
            if token_ids is None:
                token_ids = forward(logits_output, sampling_info, return_logprob, top, ids, positions, **kw)
            if led.our_rows and not (call is not None and call.is_finished):
                attempt(current, _follow, led, sampling_info, positions, current, token_ids)
            if led.returns_masks and call is not None:
                _write_masks(call, logits_output, token_ids)
            record = _record(led, call, current)
        finally:
            self.led_call = None
        if record is not None:
            logits_output.customized_info = {**(logits_output.customized_info or {}), RECORD_KEY: record}
        return token_ids

    def _decide_alone(
        self, logits_output: "LogitsProcessorOutput", sampling_info: "SamplingBatchInfo"
    ) -> Tensor | None:
        """(B,) int32, as the engine's draw, where LED decides every row and no more is reported; else None.

        On a CPU the engine's probabilities and its draw cost as much as LED, so they are left out where unused.
        """
        call = self.led_call
        if call is None or not call.attempt(getattr, call.inputs, "may_decide_alone"):
            return None
        logits = self._preprocess_logits(logits_output.next_token_logits, sampling_info, may_decide_alone=True)
        call.preprocessed = logits
        rows = call.rows_for_engine()
        if rows is None or len(rows):
            return None
        token_ids = torch.zeros(len(logits), dtype=torch.int32)
        call.write(token_ids)
        if call.has_failed:  # then the engine's tokens count after all
            return None
        self._sync_token_ids_across_tp(token_ids, sampling_info)
        return token_ids

    def _preprocess_logits(
        self, logits: Tensor, sampling_info: "SamplingBatchInfo", may_decide_alone: bool = False
    ) -> Tensor:
        call = self.led_call
        if call is not None and call.preprocessed is not None:
            known, call.preprocessed = call.preprocessed, None
            return known
        result: Tensor = super()._preprocess_logits(logits, sampling_info)  # type: ignore[misc]
        if call is not None:
            call.decide(result, draws_inactive=may_decide_alone and call.inputs.may_draw_inactive)
        return result

    def _sample_from_probs(
        self,
        probs: Tensor,
        sampling_info: "SamplingBatchInfo",
        positions: Tensor,
        simple_sampling_case: bool,
        *args: object,
        **kw: object,
    ) -> Any:
        call, sample = self.led_call, super()._sample_from_probs  # type: ignore[misc]
        rows = None
        if call is not None:
            call.draw_seeded(probs)
            rows = call.rows_for_engine() if simple_sampling_case else None

        def sample_rows(rows: Tensor) -> Any:
            some = probs.index_select(0, rows), sampling_info, positions.index_select(0, rows)
            return sample(*some, simple_sampling_case, *args, **kw)

        if call is not None and rows is not None:
            drawn = call.attempt(_sample_some, call, rows, len(probs), sample_rows)
            if drawn is not None:
                return drawn
        return sample(probs, sampling_info, positions, simple_sampling_case, *args, **kw)

    def _sample_from_logprobs(self, logprobs: Tensor, *args: object, **kw: object) -> Any:
        """The engine's way under --rl-on-policy-target."""
        call = self.led_call
        if call is not None and call.inputs.rows.seeded is not None:
            call.draw_seeded(logprobs.exp())
        return super()._sample_from_logprobs(logprobs, *args, **kw)  # type: ignore[misc]

    def _sync_token_ids_across_tp(self, token_ids: Tensor, sampling_info: "SamplingBatchInfo") -> None:
        if self.led_call is not None:
            self.led_call.write(token_ids)
        super()._sync_token_ids_across_tp(token_ids, sampling_info)  # type: ignore[misc]
        if self.led_call is not None:
            self.led_call.finish(token_ids)


def wrap_sampler(sampler: "Sampler") -> "Sampler":
    """Put LED over a sampler the engine made, whatever its class."""
    base = type(sampler)
    sampler.__class__ = type(f"Led{base.__name__}", (LedSamplerMixin, base), {})
    sampler.led_call = None
    sampler.output_logprob_processor = LogprobsAfterLed(sampler.output_logprob_processor, sampler)
    return sampler


def _begin(led: LedBatch, info: "SamplingBatchInfo", positions: Tensor, current: Runtime) -> SamplerCall | None:
    """None: no row is ours, or a fault has left the batch to the engine."""
    if current.has_forward_failed or not led.our_rows:
        return None
    inputs = getattr(current.forward_batch, "led_inputs", None)  # begun before the forward
    if inputs is None:
        inputs = attempt(current, SamplerInputs.begin, led, info, positions, current)
    return None if inputs is None else SamplerCall(inputs)


def _sample_some(call: SamplerCall, rows: Tensor, num_rows: int, sample: Callable[[Tensor], Any]) -> Any:
    """What the engine's sampler gives for `rows` alone, with LED's tokens in the others; None if LED's failed."""
    if not len(rows):  # what the engine returns beside tokens is wanted
        rows = torch.zeros(1, dtype=torch.int64)
    drawn = sample(rows)
    token_ids, *rest = drawn if isinstance(drawn, tuple) else (drawn,)
    whole = token_ids.new_zeros(num_rows).index_copy_(0, rows, token_ids)
    call.write(whole)
    if call.has_failed:  # then the engine's tokens count after all
        return None
    return (whole, *rest) if rest else whole


def _follow(led: LedBatch, info: "SamplingBatchInfo", positions: Tensor, current: Runtime, token_ids: Tensor) -> None:
    """After a step that failed: the requests' thinking states follow the engine's tokens all the same."""
    rows = led.device_rows(info)
    row_inputs = current.row_inputs(rows, positions)
    current.forget_mixtures(row_inputs.slots)
    current.advance(rows, row_inputs, token_ids)


def _write_masks(call: SamplerCall, output: "LogitsProcessorOutput", token_ids: Tensor) -> None:
    """Tokens are in place by now: where LED's draw cannot be written into a mask, the engine's does not stay there."""
    mask_output = getattr(output, "sampling_mask_output", None)
    if mask_output is None:
        return
    inputs = call.inputs
    try:
        masks.write(mask_output, call.known.draws(), token_ids, inputs.info)
    except Exception:
        fail_step(inputs.runtime)
        masks.forget(mask_output, inputs.rows.in_batch, len(token_ids), inputs.info)


def _record(led: LedBatch, call: SamplerCall | None, current: Runtime) -> StepRecord | StageOutput | None:
    """None: not even that the step failed can be recorded."""
    for known in (call, None):
        try:
            return (StageOutput if current.sends_records else StepRecord).of(led, known, current)
        except Exception:
            count_failure(current, "StepRecord.of")
    return None


def unedited_logits_of(current: Runtime, forward_batch: "ForwardBatch", logits: Tensor) -> dict[str, Tensor]:
    """`edits.unedited_logits` of a step, before the engine edits its logits (B, V)."""
    info = forward_batch.sampling_info
    return attempt(current, unedited_logits, getattr(info, "led", None), info, logits) or {}


def before_forward(current: Runtime, forward_batch: "ForwardBatch") -> None:
    """A decode step of the one-pass form begins here: its latent rows must be known before the forward."""
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
        inputs = attempt(current, _begin_one_pass, led, forward_batch, current)
    finally:
        current.forward_batch = None
    if inputs is None:
        one_pass_state.is_one_pass = False
    else:
        forward_batch.led_inputs = inputs


def _begin_one_pass(led: LedBatch, forward_batch: "ForwardBatch", current: Runtime) -> SamplerInputs:
    info, positions = forward_batch.sampling_info, forward_batch.positions
    inputs = SamplerInputs.begin(led, info, positions, current, is_one_pass=True)
    current.one_pass_state.fill_mask(inputs.rows, inputs.row_inputs, len(led.request_rows))
    return inputs
