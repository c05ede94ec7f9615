"""What a hook of the scheduler leaves behind after a fault of ours: a batch that the engine decodes, marked as such.

Each recovery and each test of a start gets the call of the hook that failed (`hooks.guard.Call`).
"""

from typing import TYPE_CHECKING, Any

from led_sglang.integration.hooks.guard import Call
from led_sglang.integration.scheduler import runtime, stage
from led_sglang.integration.scheduler.batch import LedBatch

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo


def fail_step(target: str) -> None:
    """Where tokens or thinking states depend on it."""
    stage.fail_step(_stage(), target)


def count_failure(target: str) -> None:
    """Where neither tokens nor thinking states depend on it."""
    stage.count_failure(_stage(), target)


def _stage() -> stage.Stage:
    current = runtime.stage()
    assert current is not None
    return current


def _current() -> runtime.Runtime:
    current = runtime.runtime()
    assert current is not None
    return current


def before_start(call: Call) -> bool:
    return runtime.stage() is None


def is_first_forward(call: Call) -> bool:
    """Also of a request's, where no graph is captured: what is wrong then stays wrong."""
    return runtime.is_dummy(_forward_batch(call)) or not _current().has_started


def _forward_batch(call: Call) -> "ForwardBatch":
    """The logits processor names it otherwise."""
    return call["logits_metadata"] if "logits_metadata" in call.names else call["forward_batch"]


def forward(call: Call) -> None:
    _current().fail_forward(_forward_batch(call))


def logits(call: Call) -> Any:
    _current().fail_forward(_forward_batch(call))
    return call.once()


def sample(call: Call) -> Any:
    """The step goes through our sampler, which follows the engine's tokens and records that it failed."""
    current, forward_batch = _current(), _forward_batch(call)
    current.fail_forward(forward_batch)
    current.forward_batch = forward_batch
    try:
        return call.once()
    finally:
        current.forward_batch, current.unedited_logits = None, {}


def attach_rows(call: Call) -> None:
    call["self"].led = LedBatch.lost(len(call["batch"].reqs))


def filter_rows(call: Call) -> None:
    info = call["self"]
    if _has_rows(info):
        info.led = LedBatch.lost(len(info))


def merge_rows(call: Call) -> None:
    info = call["self"]
    if _has_rows(info) or _has_rows(call["other"]):
        info.led = LedBatch.lost(len(info))


def copy_rows(call: Call) -> None:
    """Both: a step that the requests' thinking states have missed would be wrong in the ones after it."""
    info = call["self"]
    if _has_rows(info):
        info.led = call.result.led = LedBatch.lost(len(info))


def _has_rows(info: "SamplingBatchInfo") -> bool:
    return getattr(info, "led", None) is not None
