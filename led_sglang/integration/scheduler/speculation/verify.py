"""LED inside speculative decoding: LED's token at every draft node, and the path on which the drafts equal them.

A token of LED's is a function of (seed, sample, position) and of the target's numbers at its node, so one verification
gives the token of every node, and the text is that of LED without speculation.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from led_sglang.integration.hooks.guard import Call, handler
from led_sglang.integration.scheduler import runtime
from led_sglang.integration.scheduler.batch import LedBatch
from led_sglang.integration.scheduler.methods.edits import edits_of
from led_sglang.integration.scheduler.recovery import fail_step
from led_sglang.integration.scheduler.reports.records import StepRecord
from led_sglang.integration.scheduler.runtime import Runtime
from led_sglang.integration.scheduler.speculation.draws import draw_seeded
from led_sglang.integration.scheduler.speculation.nodes import VerifyInputs
from led_sglang.integration.scheduler.speculation.outcome import Outcome, Verdict
from led_sglang.integration.scheduler.step.call import attempt
from led_sglang.integration.scheduler.step.decision import before_sanitizing, run_step
from led_sglang.ops.types import LedStep
from led_sglang.wire import RECORD_KEY

if TYPE_CHECKING:
    from sglang.srt.constrained.grammar_manager import GrammarMask
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.speculative.eagle_info import EagleVerifyInput
    from sglang.srt.speculative.ngram_info import NgramVerifyInput
    from sglang.srt.watermark.state import WatermarkState


def recover(call: Call) -> Any:
    """After a fault of the hook's own: the requests keep what the engine accepts, unless all was done by then."""
    result, output = call.once(), call["logits_output"]
    current, led = runtime.runtime(), getattr(call["batch"].sampling_info, "led", None)
    if current is not None and led is not None and RECORD_KEY not in (output.customized_info or {}):
        current.has_forward_failed = True
        _verify(current, led, call["verify_input"], call["batch"], output, Outcome(*result))
    return result


@handler(fail_step, recover)
def verify(
    original: Call,
    verify_input: "EagleVerifyInput | NgramVerifyInput",
    batch: "ScheduleBatch",
    logits_output: "LogitsProcessorOutput",
    grammar_mask: "GrammarMask | None" = None,
    uno_target_max_top_k: int | None = None,
    *,
    watermark_state: "WatermarkState | None" = None,
    watermark_full_mask: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """AROUND eagle_sample. The engine's outcome comes first, with its own coins: other rows keep it bit for bit.

    It has applied penalties, bias and grammar to the logits, in place. LED's share is written over it.
    """
    stock: tuple[Tensor, Tensor, Tensor] = original(
        verify_input,
        batch,
        logits_output,
        grammar_mask,
        uno_target_max_top_k,
        watermark_state=watermark_state,
        watermark_full_mask=watermark_full_mask,
    )
    current, led = runtime.runtime(), getattr(batch.sampling_info, "led", None)
    if current is not None and led is not None and not batch.forward_mode.is_idle():
        _verify(current, led, verify_input, batch, logits_output, Outcome(*stock))
    return stock


def _verify(
    current: Runtime,
    led: LedBatch,
    verify_input: "EagleVerifyInput | NgramVerifyInput",
    batch: "ScheduleBatch",
    logits_output: "LogitsProcessorOutput",
    stock: Outcome,
) -> None:
    """After a fault of ours the requests keep the engine's outcome, and their thinking states follow it."""
    outcome, step, has_failed = stock, None, current.has_forward_failed
    beginning = current, led, batch, verify_input
    inputs = attempt(current, VerifyInputs.begin, *beginning) if led.our_rows else None
    if inputs is not None and not has_failed:
        decided = attempt(current, decide, inputs, logits_output.next_token_logits, stock)
        outcome, step = decided or (stock, None)
        has_failed = decided is None
    elif led.our_rows:
        has_failed = True
        inputs = inputs or attempt(current, VerifyInputs.begin, *beginning)
    if inputs is not None:  # a state that is lost would be wrong from here on
        _ = attempt(current, _advance, inputs, outcome) or attempt(current, _advance, inputs, outcome)
    record = attempt(current, StepRecord.of_verify, led, inputs, step, outcome, has_failed, current)
    record = record or StepRecord(led, current.counts)
    outcome.write(stock)
    logits_output.customized_info = {**(logits_output.customized_info or {}), RECORD_KEY: record}


def decide(inputs: VerifyInputs, logits: Tensor, stock: Outcome) -> tuple[Outcome, LedStep | None]:
    """LED's share of the outcome, from the engine's final logits (T, V)."""
    current = inputs.runtime
    if current.ranks is not None:
        current.ranks.check(torch.stack([inputs.row_inputs.coin_uniform, inputs.row_inputs.token_uniform]))
    may_look = current.allows_dynamic_shapes
    step = None if may_look and not inputs.active.any() else _led_step(inputs, logits)
    token_ids = torch.full_like(inputs.nodes.request_idx, -1)
    if step is not None:
        token_ids = torch.where(inputs.active & step.ok, step.token_ids, token_ids)
    if inputs.nodes.seeded is not None:
        token_ids = draw_seeded(inputs, inputs.nodes.seeded, logits, token_ids)
    if step is None and inputs.nodes.seeded is None:
        return stock, None
    if current.ranks is not None:
        token_ids = current.ranks.agree(token_ids)
    verdict = Verdict(token_ids.view(inputs.tree.states.shape))
    return verdict.apply(inputs, stock), step


def _led_step(inputs: VerifyInputs, logits: Tensor) -> LedStep:
    nodes = inputs.nodes
    return run_step(
        inputs.runtime,
        before_sanitizing(logits) if inputs.runtime.is_sanitized else logits,
        nodes.meta,
        nodes.params,
        inputs.row_inputs,
        edits=None if nodes.edited is None else edits_of(inputs.info, nodes.request_idx, nodes.edited),
        tree=inputs.tree,
    )


def _advance(inputs: VerifyInputs, outcome: Outcome) -> bool:
    """The state of a request becomes that of the last node of its path, its token included."""
    current, rows = inputs.runtime, inputs.rows
    last = outcome.path.gather(1, (outcome.accept_lens.long() - 1)[:, None]).squeeze(1)  # (B,) token rows
    token_ids = outcome.predict[last]
    current.advance(rows, inputs.of_requests(last), token_ids)
    if current.ranks is not None:
        current.ranks.note(rows.pick(token_ids).long())
    return True
