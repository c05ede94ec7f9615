"""A request that no front end of ours has read is refused where it arrives, rather than decoded as if it asked nothing.

The HTTP process resolves LED's parameters (`http.requests.resolve_one`). Requests of a process without our hooks, such
as an Engine's attached tokenizer worker, arrive as their clients wrote them.
"""

from http import HTTPStatus
from typing import TYPE_CHECKING

from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.disaggregation.utils import prepare_abort

from led_sglang.config.server import ServerConfig
from led_sglang.integration.hooks.guard import Call, call_original, handler
from led_sglang.integration.scheduler import runtime
from led_sglang.integration.scheduler.recovery import before_start, count_failure
from led_sglang.wire import RESOLVED_KEY

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.scheduler import Scheduler

REASON = (
    "this server decodes with LED, and the front end that sent the request has not read its LED parameters: send it "
    "to the server's HTTP port"
)


def is_unresolved(req: "Req", config: ServerConfig) -> bool:
    """LED would decode the request, by its own word or by default, if a front end had resolved what it asks.

    The engine's health probes are nobody's requests. A beam search decodes plainly, and its leader holds the engine's
    own parameters by now; the front end has refused it where LED was to decode it (`config.request.refuse_beams`).
    """
    if getattr(req, "beam_group", None) is not None:  # 0.5.17 has no beam search
        return False
    custom = req.sampling_params.custom_params or {}
    if "seed" in custom.get(RESOLVED_KEY, ()) or str(req.rid).startswith(HEALTH_CHECK_RID_PREFIX):
        return False
    return config.default_on or custom.get("led") is not None


@handler(count_failure, call_original, before_start)
def admit(original: Call, self: "Scheduler", req: "Req", is_retracted: bool = False) -> None:
    """AROUND Scheduler._add_request_to_queue. Every rank refuses the same requests."""
    current = runtime.stage()
    if current is None or is_retracted or not is_unresolved(req, current.config):
        original(self, req, is_retracted)
        return
    current.counts.num_unresolved += 1
    prepare_abort(req, REASON, HTTPStatus.BAD_REQUEST)
    release = getattr(self, "_release_aborted_request", None)  # not in 0.5.17
    if release is not None:
        release(req)
    self.output_streamer.stream_output([req], req.return_logprob)
