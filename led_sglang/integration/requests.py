"""The HTTP process: validate, stamp and report requests."""

import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from led_sglang.integration.records import ACTIVE, DEPTH_SHIFT, EXPLORED, FALLBACK, THINKING, WIRE_KEY
from led_sglang.params import STAMP_KEY, LedParamError, LedParams, ServerConfig, StampedParams, parse_request, server_config

TRACE_KEYS = (
    "led_think",
    "led_explored",
    "led_depth",
    "led_confidence",
    "led_entropy",
    "led_logprob",
    "led_candidates",
    "led_exploit",
    "led_explore",
)


def _config() -> ServerConfig:
    config = server_config()
    assert config is not None
    return config


def verify(original: Any, self: Any, vocab_size: int) -> None:
    """AROUND SamplingParams.verify: a LedParamError here becomes HTTP 400."""
    original(self, vocab_size)
    custom = self.custom_params
    if custom is not None and STAMP_KEY in custom:
        raise LedParamError(f"custom_params: the key {STAMP_KEY!r} is reserved")
    params = parse_request(custom.get("led") if custom else None, _config())
    if params is None or params.method == "none":
        return
    if getattr(self, "beam_width", None) not in (None, 1):
        raise LedParamError(f"LED samples, it cannot run a beam search: beam_width must be 1, got {self.beam_width}")


def stamp_one(self: Any, tokenized_obj: Any) -> None:
    """BEFORE TokenizerManager._send_one_request: write the resolved parameters, seed and sample index into the request."""
    sampling = getattr(tokenized_obj, "sampling_params", None)
    if sampling is None or not hasattr(sampling, "custom_params"):
        return
    _refuse_empty(tokenized_obj)
    custom = sampling.custom_params or {}
    params = parse_request(custom.get("led"), _config())
    if params is None:
        return
    earlier = custom.get(STAMP_KEY)
    if earlier is not None:  # the next of n samples: the engine shares one SamplingParams among them
        stamped = StampedParams(params, earlier["seed"], earlier["is_seeded"], earlier["sample"] + 1)
    else:
        seed = sampling.sampling_seed
        stamped = StampedParams(params, secrets.randbits(63) if seed is None else seed, seed is not None, 0)
    sampling.custom_params = {**custom, STAMP_KEY: stamped.to_wire()}


def stamp_batch(self: Any, tokenized_objs: list[Any]) -> None:
    """BEFORE TokenizerManager._send_batch_request."""
    for tokenized_obj in tokenized_objs:
        stamp_one(self, tokenized_obj)


def _refuse_empty(tokenized_obj: Any) -> None:
    if getattr(tokenized_obj, "input_embeds", None) is None and tokenized_obj.input_ids is not None:
        if len(tokenized_obj.input_ids) == 0:
            raise LedParamError("the prompt has no tokens: at least one is needed")


class Counters:
    """Since start, counted as clients are answered; what /led/info and /metrics show."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.num_thinking = 0
        self.num_explored = 0
        self.num_fallbacks = 0
        self.depths: Counter[int] = Counter()
        self.requests: Counter[str] = Counter()

    def add(self, flags: int) -> None:
        self.num_tokens += bool(flags & ACTIVE)
        self.num_thinking += bool(flags & THINKING)
        self.num_fallbacks += bool(flags & FALLBACK)
        if flags & EXPLORED:
            self.num_explored += 1
            self.depths[flags >> DEPTH_SHIFT] += 1

    def public(self) -> dict[str, Any]:
        return {
            "led_tokens": self.num_tokens,
            "thinking_tokens": self.num_thinking,
            "explored_tokens": self.num_explored,
            "fallbacks": self.num_fallbacks,
            "depth_histogram": {str(depth): count for depth, count in sorted(self.depths.items())},
            "requests": dict(self.requests),
        }


COUNTERS = Counters()


@dataclass
class RequestView:
    """What one request is told about itself."""

    params: LedParams
    counters: Counters = field(default_factory=Counters)

    def stats(self) -> dict[str, Any]:
        depths = self.counters.depths
        explored = self.counters.num_explored
        return {
            "led_tokens": self.counters.num_tokens,
            "thinking_tokens": self.counters.num_thinking,
            "explored_tokens": explored,
            "mean_depth": sum(d * n for d, n in depths.items()) / explored if explored else None,
            "fallbacks": self.counters.num_fallbacks,
        }


def report(
    original: Any, self: Any, meta_info: Any, state: Any, customized_info: Any, index: int, finish_reason: Any
) -> None:
    """AROUND TokenizerManager.update_request_meta_info: our entries become led_params, led_stats and the trace."""
    others = {key: values for key, values in customized_info.items() if key != WIRE_KEY}
    original(self, meta_info, state, others, index, finish_reason)
    entries = [entry for entry in (customized_info.get(WIRE_KEY) or [[]] * (index + 1))[index] if entry is not None]
    view = _view(state, bool(entries))
    if view is None:
        return
    for entry in entries:
        flags = entry if isinstance(entry, int) else entry[0]
        view.counters.add(flags)
        COUNTERS.add(flags)
    meta_info["led_params"] = view.params.public()
    if view.params.method != "none":
        meta_info["led_stats"] = view.stats()
    if view.params.trace:
        for key, values in _trace_columns(entries).items():
            self._accumulate_request_meta_info(meta_info, state, key, values)


def _view(state: Any, has_entries: bool) -> RequestView | None:
    view: RequestView | None = getattr(state, "led_view", None)
    if view is None and has_entries:
        params = parse_request(_wire_value(state.obj), _config())
        if params is not None:
            view = state.led_view = RequestView(params)
            COUNTERS.requests[params.method] += 1
    return view


def _wire_value(obj: Any) -> object:
    sampling = obj.sampling_params if isinstance(obj.sampling_params, dict) else {}
    custom = sampling.get("custom_params") or {}
    return custom.get("led")


def _trace_columns(entries: list[Any]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {key: [] for key in TRACE_KEYS}
    for flags, *values in entries:
        is_active = bool(flags & ACTIVE) and not flags & FALLBACK
        columns["led_think"].append(bool(flags & THINKING))
        columns["led_explored"].append(bool(flags & EXPLORED))
        columns["led_depth"].append(flags >> DEPTH_SHIFT if is_active else None)
        for key, value in zip(TRACE_KEYS[3:], values, strict=True):
            columns[key].append(value)
    return columns
