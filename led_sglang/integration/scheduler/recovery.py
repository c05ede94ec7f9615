"""What a hook of the scheduler leaves behind after a fault of ours: a batch that the engine decodes, and is told so.

Each function has the arguments of the handler that it stands in for (`guard.Guarded`).
"""

from typing import Any

from led_sglang.integration.hooks.guard import Call, is_nobodys
from led_sglang.integration.scheduler import runtime
from led_sglang.integration.scheduler.batch import LedBatch


def fail_step(target: str) -> None:
    runtime.fail_step(_served(), target)


def count_failure(target: str) -> None:
    """Where neither tokens nor thinking states depend on it."""
    runtime.count_failure(_served(), target)


def _served() -> runtime.Runtime:
    current = runtime.runtime()
    assert current is not None
    return current


def before_start(*args: Any, **kwargs: Any) -> bool:
    return runtime.runtime() is None


def _is_start(forward_batch: Any) -> bool:
    """Also of the first forward, which is a request's where no graph is captured: what is wrong then stays wrong."""
    return is_nobodys(forward_batch) or not _served().has_started


def is_start_of_forward(self: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> bool:
    return _is_start(forward_batch)


def forward(self: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> None:
    _served().fail_forward(forward_batch)


def is_start_of_logits(
    original: Call, self: Any, input_ids: Any, hidden_states: Any, lm_head: Any, batch: Any, *args: Any, **kwargs: Any
) -> bool:
    return _is_start(batch)


def logits(
    original: Call,
    self: Any,
    input_ids: Any,
    hidden_states: Any,
    lm_head: Any,
    batch: Any,
    aux_hidden_states: Any = None,
    hidden_states_before_norm: Any = None,
) -> Any:
    _served().fail_forward(batch)
    return original.once(self, input_ids, hidden_states, lm_head, batch, None, hidden_states_before_norm)


def is_start_of_sample(original: Call, self: Any, logits_output: Any, forward_batch: Any) -> bool:
    return _is_start(forward_batch)


def sample(original: Call, self: Any, logits_output: Any, forward_batch: Any) -> Any:
    """The step goes through our sampler, which follows the engine's tokens and records that it failed."""
    current = _served()
    current.fail_forward(forward_batch)
    current.forward_batch = forward_batch
    try:
        return original.once(self, logits_output, forward_batch)
    finally:
        current.forward_batch, current.unedited_logits = None, {}


def request_row(result: Any, self: Any, batch: Any, vocab_size: int) -> None:
    self.led = LedBatch.lost(len(batch.reqs))


def filter_rows(result: Any, self: Any, *args: Any) -> None:
    if getattr(self, "led", None) is not None:
        self.led = LedBatch.lost(len(self))


def merge(result: Any, self: Any, other: Any) -> None:
    if getattr(self, "led", None) is not None or getattr(other, "led", None) is not None:
        self.led = LedBatch.lost(len(self))


def copy(result: Any, self: Any) -> None:
    """Both: a step that the requests' thinking states have missed would be wrong in the ones after it."""
    if getattr(self, "led", None) is not None:
        self.led = result.led = LedBatch.lost(len(self))
