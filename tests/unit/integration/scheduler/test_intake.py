"""A request that no front end has read is refused by the scheduler, and counted."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.sampling.sampling_params import SamplingParams

from led_sglang.config.fields import LedParams
from led_sglang.config.request import ResolvedRequest
from led_sglang.config.server import ServerConfig
from led_sglang.integration.scheduler import intake, runtime
from led_sglang.integration.scheduler.reports.counters import Counts
from led_sglang.wire import RESOLVED_KEY

PARSED = LedParams().to_wire()
RESOLVED = ResolvedRequest(LedParams(), 1, True, 0).to_wire()
UNREAD: dict[str, tuple[bool, Any]] = {
    "on by default": (True, None),
    "parameters of another": (True, {"other": 1}),
    "asked for": (False, {"led": True}),
    "switched off by its own word, which nobody read": (True, {"led": False}),
    "validated, but without a seed": (True, {RESOLVED_KEY: PARSED}),
}
READ: dict[str, tuple[bool, Any]] = {
    "resolved": (True, {RESOLVED_KEY: RESOLVED}),
    "resolved on request": (False, {"led": True, RESOLVED_KEY: RESOLVED}),
    "nothing asked, off by default": (False, None),
    "null asks for nothing": (False, {"led": None}),
}


class Scheduler:
    """As much of one: what it has queued, and what it has answered."""

    def __init__(self) -> None:
        self.queued: list[Any] = []
        self.answered: list[Any] = []
        self.output_streamer = SimpleNamespace(stream_output=lambda reqs, logprobs: self.answered.extend(reqs))


def add(scheduler: Scheduler, req: Any, is_retracted: bool = False) -> None:
    scheduler.queued.append(req)


def req_of(custom: Any, rid: str = "a") -> Any:
    params = SamplingParams(custom_params=custom)
    return SimpleNamespace(sampling_params=params, rid=rid, return_logprob=False, finished_reason=None)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The runtime; its `config` is the test's to set."""
    current = SimpleNamespace(config=ServerConfig(), counts=Counts(8, torch.device("cpu")))
    monkeypatch.setattr(runtime, "_runtime", current)
    return current


def admit(served: Any, default_on: bool, req: Any, **kwargs: Any) -> Scheduler:
    served.config = ServerConfig(default_on=default_on)
    scheduler = Scheduler()
    intake.admit(add, scheduler, req, **kwargs)
    return scheduler


@pytest.mark.parametrize("name", UNREAD)
def test_what_nobody_has_read_is_refused(name: str, served: Any) -> None:
    default_on, custom = UNREAD[name]
    req = req_of(custom)
    scheduler = admit(served, default_on, req)
    assert scheduler.queued == [] and scheduler.answered == [req]
    assert "has not read its LED parameters" in req.finished_reason.message
    assert req.finished_reason.to_json()["status_code"] == 400
    assert served.counts.status()["unresolved_requests"] == 1


@pytest.mark.parametrize("name", READ)
def test_what_was_read_is_served(name: str, served: Any) -> None:
    default_on, custom = READ[name]
    scheduler = admit(served, default_on, req_of(custom))
    assert len(scheduler.queued) == 1 and scheduler.answered == []
    assert served.counts.status()["unresolved_requests"] == 0


def test_leaders_of_beams_health_probes_and_retracted_requests_pass(served: Any) -> None:
    leader = req_of(None)  # the engine has put its own parameters in the place of the client's
    leader.beam_group = object()
    assert admit(served, True, leader).queued == [leader]
    probe = req_of(None, f"{HEALTH_CHECK_RID_PREFIX}_1")
    assert admit(served, True, probe).queued == [probe]
    retracted = req_of(None)
    assert admit(served, True, retracted, is_retracted=True).queued == [retracted]
