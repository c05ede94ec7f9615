"""One call of the sampler, from callback to callback of the engine, and the one guard around what LED does there."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from led_sglang.integration.faults import RankDivergence
from led_sglang.integration.scheduler.runtime import Runtime
from led_sglang.integration.scheduler.stage import fail_step
from led_sglang.integration.scheduler.step.decision import Decision, decide, draw_seeded
from led_sglang.integration.scheduler.step.inputs import SamplerInputs

T = TypeVar("T")


def attempt(
    current: Runtime, action: Callable[..., T], *args: object, on_fault: Callable[[], None] | None = None
) -> T | None:
    """The action's result; None after a fault of ours, which must not take the scheduler down and is counted."""
    try:
        return action(*args)
    except RankDivergence:
        raise
    except Exception:
        fail_step(current, getattr(action, "__qualname__", repr(action)))
        if on_fault is not None:
            on_fault()
        return None


class SamplerCall:
    """Holds what is decided so far. After a fault before the tokens are written, the step keeps the engine's tokens."""

    def __init__(self, inputs: SamplerInputs) -> None:
        self.inputs = inputs
        self.decision: Decision | None = None  # None: no logits have come yet
        self.preprocessed: Tensor | None = None  # the engine's logits, before its sampler asks for them
        self.has_failed = False
        self.is_written = False
        self.is_finished = False

    @property
    def known(self) -> Decision:
        return Decision(self.inputs) if self.decision is None else self.decision

    def attempt(self, action: Callable[..., T], *args: object) -> T | None:
        """As the function: the step goes on after a fault."""
        return attempt(self.inputs.runtime, action, *args)

    def decide(self, logits: Tensor, draws_inactive: bool) -> None:
        """Of the engine's final logits (B, V)."""
        if self.decision is None:
            decision = self._or_fail(decide, self.inputs, logits, draws_inactive)
            self.decision = decision or self.known

    def draw_seeded(self, probs: Tensor) -> None:
        """Of the engine's probabilities (B, V), where LED left rows to them."""
        if self.inputs.rows.seeded is not None:
            seeded = self._or_fail(draw_seeded, self.inputs, probs)
            self.decision = replace(self.known, seeded=seeded)

    def rows_for_engine(self) -> Tensor | None:
        """See Decision."""
        return self.attempt(self.known.rows_for_engine)

    def write(self, token_ids: Tensor) -> None:
        """Once: the first of the engine's callbacks that has tokens."""
        if not self.is_written:
            self.is_written = True
            self._or_fail(self.known.write, token_ids)

    def finish(self, token_ids: Tensor) -> None:
        """Advance the thinking states with the tokens (B,) that count. LED's are in place by now, a fault or not."""
        if self.attempt(self._finish, token_ids):
            self.is_finished = True

    def _finish(self, token_ids: Tensor) -> bool:
        current, rows = self.inputs.runtime, self.inputs.rows
        current.advance(rows, self.inputs.row_inputs, token_ids)
        if current.ranks is not None:
            current.ranks.note(rows.pick(token_ids).long())
        return True

    def _or_fail(self, action: Callable[..., T], *args: object) -> T | None:
        """The guard of what the step cannot go on without."""
        return attempt(self.inputs.runtime, action, *args, on_fault=self._leave_to_engine)

    def _leave_to_engine(self) -> None:
        seeded = None if self.decision is None else self.decision.seeded
        self.decision, self.has_failed = Decision(self.inputs, seeded=seeded), True
        self.inputs.runtime.forget_mixtures(self.inputs.row_inputs.slots)
