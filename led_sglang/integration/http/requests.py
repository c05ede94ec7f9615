"""The HTTP process: validate, stamp and report requests."""

import hashlib
import json
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.managers.io_struct import unwrap_from_pickle, wrap_as_pickle
from sglang.srt.runtime_context import get_exec

from led_sglang.config.checks import LedParamError, show
from led_sglang.config.fields import LedParams
from led_sglang.config.request import ResolvedRequest, check_custom_params, parse_request, refuse_beams
from led_sglang.config.server import ServerConfig, server_config
from led_sglang.integration.http.faults import is_new
from led_sglang.integration.http.responses import RequestView
from led_sglang.wire import RESOLVED_KEY, WIRE_KEY

logger = logging.getLogger(__name__)
DETERMINISTIC_SEED = 42  # SGLang's own for requests without one under --enable-deterministic-inference
MAX_BIAS = 1e30  # one that is infinite in float32, over the temperature too, takes stock SGLang 0.5.23's scheduler down


def _config() -> ServerConfig:
    config = server_config()
    assert config is not None
    return config


def verify(original: Any, self: Any, vocab_size: int) -> None:
    """AROUND SamplingParams.verify: a LedParamError here becomes HTTP 400."""
    original(self, vocab_size)
    for token, bias in (self.logit_bias or {}).items():
        if not _is_bias(bias):
            raise LedParamError(f"logit_bias[{token}] must be a number of at most {MAX_BIAS:g}, got {show(bias)}")
    custom = self.custom_params
    if custom is not None:
        check_custom_params(custom)
    refuse_beams(getattr(self, "beam_width", None), parse_request(custom.get("led") if custom else None, _config()))


def _is_bias(value: Any) -> bool:
    try:
        return float(value) <= MAX_BIAS
    except (TypeError, ValueError):
        return False


def refuse_mask(params: LedParams | None, returns_mask: Sequence[object]) -> None:
    """Raises LedParamError where `return_sampling_mask` could not be answered with what the tokens are drawn from.

    params: of requests, None = not ours; returns_mask: a field of each, which a JSON body may hold as anything.
    """
    if not any(value is True for value in returns_mask) or params is None or params.method == "none":
        return
    if not _masks_are_tensors():
        raise LedParamError(
            "return_sampling_mask with LED needs SGLang 0.5.23 or newer: send custom_params.led false, or no mask"
        )
    if params.method == "soft_thinking_gumbel":
        raise LedParamError(
            'custom_params.led.method must be "led" or another method without noise in its inputs where '
            'return_sampling_mask is set, got "soft_thinking_gumbel": no probability of its tokens tells what was drawn'
        )
    limit = get_exec().features.sampling_mask_max_tokens
    if params.method == "led" and params.top_k > limit:
        raise LedParamError(
            f"custom_params.led.top_k must be an integer in [1, {limit}] where return_sampling_mask is set "
            f"(--sampling-mask-max-tokens raises it), got {params.top_k}"
        )


@cache
def _masks_are_tensors() -> bool:
    """Older releases make lists of them in the middle of the sampler, before the token is LED's."""
    from sglang.srt.layers import logits_processor  # not before it is asked: the HTTP process has no use for it

    return hasattr(logits_processor, "SamplingMaskOutput")


def add_to_responses(
    result: dict[str, Any],
    self: Any,
    default_max_tokens: Any = None,
    default_params: Any = None,
    stop: Any = None,
    tool_call_constraint: Any = None,
) -> None:
    """AFTER ResponsesRequest.to_sampling_params: the parameters that `rewrite_body` left in `metadata.led`."""
    value = (self.metadata or {}).get("led")
    if value is not None:
        parsed = json.loads(value) if isinstance(value, str) else value
        result["custom_params"] = {**(result.get("custom_params") or {}), "led": parsed}


def resolve_one(self: Any, tokenized_obj: Any) -> None:
    """BEFORE TokenizerManager._send_one_request: write resolved parameters, seed and sample index into the request."""
    sampling = getattr(tokenized_obj, "sampling_params", None)
    if sampling is None or not hasattr(sampling, "custom_params"):
        return
    _refuse_empty(tokenized_obj)
    if _is_probe(tokenized_obj.rid):
        return
    custom = sampling.custom_params or {}
    params = parse_request(custom.get("led"), _config())
    refuse_mask(params, [getattr(tokenized_obj, "return_sampling_mask", False)])
    if params is None:
        return
    earlier = custom.get(RESOLVED_KEY)
    if earlier is not None:  # the next of n samples: the engine shares one SamplingParams among them
        resolved = ResolvedRequest(params, earlier["seed"], earlier["is_seeded"], earlier["sample"] + 1)
    else:
        seed = sampling.sampling_seed
        resolved = ResolvedRequest(
            params, _default_seed(self, tokenized_obj) if seed is None else seed, seed is not None, 0
        )
    sampling.custom_params = {**custom, RESOLVED_KEY: resolved.to_wire()}


def _default_seed(tokenizer_manager: Any, tokenized_obj: Any) -> int:
    """Of a request that names none: drawn, but the prompt's own where the engine would answer alike every time."""
    if getattr(tokenizer_manager.server_args, "enable_deterministic_inference", False):
        return DETERMINISTIC_SEED
    return prompt_seed(tokenized_obj) if tokenized_obj.sampling_params.top_k == 1 else secrets.randbits(63)


def prompt_seed(tokenized_obj: Any) -> int:
    """63 bits of a hash of the prompt's ids, and of its embeddings where it is given as such."""
    digest = hashlib.blake2b(digest_size=8)
    for values, dtype in ((tokenized_obj.input_ids, "<i8"), (getattr(tokenized_obj, "input_embeds", None), "<f4")):
        digest.update(np.asarray([] if values is None else values, dtype).tobytes())
    return int.from_bytes(digest.digest(), "little") >> 1


def _is_probe(rid: object) -> bool:
    """SGLang's /health generates a token; that is nobody's request, and no counter may show it."""
    return isinstance(rid, str) and rid.startswith(HEALTH_CHECK_RID_PREFIX)


def resolve_batch(self: Any, tokenized_objs: list[Any]) -> None:
    """BEFORE TokenizerManager._send_batch_request."""
    for tokenized_obj in tokenized_objs:
        resolve_one(self, tokenized_obj)


def _refuse_empty(tokenized_obj: Any) -> None:
    """An empty prompt takes stock SGLang 0.5.23's scheduler down."""
    ids = getattr(tokenized_obj, "input_ids", None)
    if getattr(tokenized_obj, "input_embeds", None) is None and ids is not None and len(ids) == 0:
        raise LedParamError("the prompt has no tokens: at least one is needed")


@dataclass
class Answers:
    """What this process alone knows, since start; the other counters of /led/info and /metrics are the scheduler's."""

    num_report_failures: int = 0
    requests: Counter[str] = field(default_factory=Counter)  # by decoding method

    def to_dict(self) -> dict[str, Any]:
        return {"report_failures": self.num_report_failures, "requests": dict(self.requests)}


ANSWERS = Answers()


def count_failure(where: str) -> None:
    """Called in the `except` block of a fault of ours. What is new is logged, counted are all."""
    ANSWERS.num_report_failures += 1
    if is_new(where):
        logger.exception("LED could not report (%s); what it lost is counted as `unreported` in led_stats", where)


def take_entries(self: Any, recv_obj: Any) -> None:
    """BEFORE TokenizerManager._handle_batch_output: take our entries out of the scheduler's answer."""
    per_request = _take_out(recv_obj)
    if per_request is None:
        return
    for rid, entries, num_tokens in zip(recv_obj.rids, per_request, recv_obj.completion_tokens, strict=True):
        view = _view(self.rid_to_state.get(rid))
        if view is not None:
            view.add(entries, num_tokens)


def lose_entries(self: Any, recv_obj: Any) -> None:
    """After a fault of `take_entries`: no entry reaches a client as it is; the views will see what they have missed."""
    try:
        _take_out(recv_obj)
    except Exception:
        recv_obj.customized_info = None


def _take_out(recv_obj: Any) -> list[Any] | None:
    """Our entries, by request; None where there are none. What is left is another's."""
    wrapped = getattr(recv_obj, "customized_info", None)
    if wrapped is None:
        return None
    info = unwrap_from_pickle(wrapped)
    if not isinstance(info, dict) or WIRE_KEY not in info:
        return None
    per_request: list[Any] = info.pop(WIRE_KEY)
    recv_obj.customized_info = wrap_as_pickle(info) if info else None
    return per_request


def respond(original: Any, self: Any, obj: Any, request: Any = None) -> AsyncIterator[Any]:
    """AROUND TokenizerManager._wait_one_response: led_params, led_stats and the trace join `meta_info`.

    That yields once without `stream`, and chunks of the server's own cadence with it.
    """
    state = self.rid_to_state.get(obj.rid)
    return _with_led(original(self, obj, request), state, _report)


def respond_anyway(original: Any, self: Any, obj: Any, request: Any = None) -> AsyncIterator[Any]:
    """After a fault of `respond`."""
    return _with_led(original.once(self, obj, request), None, _say_unreported)


async def _with_led(answers: Any, state: Any, report: Callable[[dict[str, Any], Any], None]) -> AsyncIterator[Any]:
    async with aclosing(answers):
        async for answer in answers:
            if isinstance(answer, dict) and "meta_info" in answer:
                try:
                    report(answer, state)
                except Exception:
                    count_failure("an answer")
                    _say_unreported(answer, state)
            yield answer


def _say_unreported(answer: dict[str, Any], state: Any) -> None:
    """Of an answer that LED cannot say more about."""
    meta = answer["meta_info"]
    meta.setdefault("led_stats", {"unreported": meta.get("completion_tokens", 0)})


def _report(answer: dict[str, Any], state: Any) -> None:
    view = _view(state)  # made here for a request that was given no token (max_new_tokens 0, an abort)
    if view is None:
        return
    meta = answer["meta_info"]
    ids: list[int] = state.output_ids
    meta.update(view.report(meta.get("completion_tokens", 0)))
    if view.params.trace and answer.get("output_ids") is ids:
        # SGLang goes on filling this list; in a batch, before the chunk is written: its ids would outrun its trace.
        answer["output_ids"] = list(ids)


def _view(state: Any) -> RequestView | None:
    if state is None or _is_probe(state.obj.rid):
        return None
    view: RequestView | None = getattr(state, "led_view", None)
    if view is None:
        params = parse_request(_wire_value(state.obj), _config())
        if params is not None:
            view = state.led_view = RequestView(params)
            ANSWERS.requests[params.method] += 1
    return view


def _wire_value(obj: Any) -> object:
    sampling = obj.sampling_params if isinstance(obj.sampling_params, dict) else {}
    custom = sampling.get("custom_params") or {}
    return custom.get("led")
