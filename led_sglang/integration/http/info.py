"""GET /led/info: what runs here, and whether it is verified."""

from collections.abc import Iterable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException

from led_sglang import __version__
from led_sglang.config.server import server_config
from led_sglang.integration.hooks import selfcheck
from led_sglang.integration.hooks.table import HOOK_TARGETS, hooks_of
from led_sglang.integration.http.responses import ANSWERS

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager


def combine(engines: list[dict[str, Any]]) -> dict[str, Any]:
    """The reports of data-parallel engines as one: counts are summed, the first fault or other value stands for all."""
    if not engines:
        return {}
    first = dict(engines[0])
    if len(engines) == 1:
        return first
    for key in ("step_failures", "counters"):
        first[key] = _total([engine[key] for engine in engines])
    for key, count in (("form", "steps"), ("head", "engine_steps")):
        first[key] = {**first[key], count: _total([engine[key][count] for engine in engines])}
    first["form"]["fault"] = _first_fault(engine["form"]["fault"] for engine in engines)
    first["hook_faults"] = {
        target: _first_fault(engine["hook_faults"][target] for engine in engines) for target in first["hook_faults"]
    }
    return first


def _total(counts: list[Any]) -> Any:
    if isinstance(counts[0], dict):
        return {key: _total([count[key] for count in counts]) for key in counts[0]}
    return sum(counts)


def _first_fault(faults: Iterable[str | None]) -> str | None:
    return next((fault for fault in faults if fault is not None), None)


async def scheduler_status(tokenizer_manager: "TokenizerManager") -> dict[str, Any]:
    """Of all engines together; empty where none answers for LED. Raises HTTPException where one could not tell."""
    states = await tokenizer_manager.get_internal_state()
    engines = [state["led"] for state in states if state.get("led")]
    fault = _first_fault(engine.get("fault") for engine in engines)
    if fault is not None:
        raise HTTPException(500, fault)
    return combine(engines)


async def describe(tokenizer_manager: "TokenizerManager") -> dict[str, Any]:
    """The document served at /led/info."""
    config = server_config()
    assert config is not None
    status = await scheduler_status(tokenizer_manager)
    faults, release = status.pop("hook_faults", {}), version("sglang")
    return {
        "versions": {"led_sglang": __version__, "sglang": release, "torch": version("torch")},
        **status,
        "defaults": {
            "led": config.default_on,
            "depth": config.depth,
            "top_k": config.top_k,
            "phase": config.phase,
        },
        "limits": {"max_depth": config.max_depth, "max_top_k": config.max_top_k},
        "markers": {
            "open": {"text": config.think_open, "ids": list(config.open_ids)},
            "close": {"text": config.think_close, "ids": list(config.close_ids)},
            "more_open_ids": [list(ids) for ids in config.more_open],
            "more_close_ids": [list(ids) for ids in config.more_close],
            "matched_texts": config.matched_texts,  # where tokens cannot tell: what opens, and what closes
        },
        "hooks": {target: _hook(target, faults) for target in hooks_of(release)},
        "counters": {
            **status.get("counters", {}),
            "step_failures": status.get("step_failures", 0),
            **ANSWERS.to_dict(),
        },
    }


def _hook(target: str, scheduler_faults: dict[str, str | None]) -> dict[str, Any]:
    spec = HOOK_TARGETS[target]
    here = spec.process == "http"
    fault = selfcheck.check_hook(target, spec) if here else scheduler_faults.get(target, "no answer from the scheduler")
    return {"kind": spec.kind, "why": spec.why, "verified": fault is None, "fault": fault}
