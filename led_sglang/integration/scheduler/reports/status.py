"""What a scheduler process reports about itself: /led/info and /metrics ask for it through SGLang's internal state."""

from importlib.metadata import version
from typing import TYPE_CHECKING

from led_sglang.integration.hooks import selfcheck
from led_sglang.integration.hooks.guard import Call, handler
from led_sglang.integration.hooks.table import hooks_of
from led_sglang.integration.scheduler import runtime
from led_sglang.integration.scheduler.recovery import before_start, count_failure

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import GetInternalStateReq, GetInternalStateReqOutput
    from sglang.srt.managers.scheduler import Scheduler


def report_fault(call: Call) -> None:
    """After a fault of `add_status`: the reader gets an error, instead of numbers that were not counted."""
    call.result.internal_state["led"] = {"fault": "LED's facts of the scheduler could not be told; its log says why"}


@handler(count_failure, report_fault, before_start)
def add_status(result: "GetInternalStateReqOutput", self: "Scheduler", recv_req: "GetInternalStateReq") -> None:
    """AFTER Scheduler.get_internal_state."""
    current = runtime.stage()
    if current is not None:
        hooks = {
            target: selfcheck.check_hook(target, spec)
            for target, spec in hooks_of(version("sglang")).items()
            if spec.process == "scheduler"
        }
        result.internal_state["led"] = {**current.status(), "hook_faults": hooks}
