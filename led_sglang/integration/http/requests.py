"""Requests on their way in: LED's parameters are checked, resolved once, and written where the scheduler finds them."""

import hashlib
import json
import secrets
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.runtime_context import get_exec

from led_sglang.config.checks import LedParamError, show
from led_sglang.config.fields import LedParams
from led_sglang.config.request import ResolvedRequest, check_custom_params, parse_request, refuse_beams
from led_sglang.config.server import ServerConfig, server_config
from led_sglang.integration.hooks.guard import Call, handler
from led_sglang.integration.http.faults import refuse
from led_sglang.integration.http.request_view import RequestView
from led_sglang.integration.http.responses import count_failure
from led_sglang.wire import RESOLVED_KEY

if TYPE_CHECKING:
    from sglang.srt.entrypoints.openai.protocol import ResponsesRequest, ToolCallConstraint
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.sampling.sampling_params import SamplingParams

DETERMINISTIC_SEED = 42  # SGLang's own for requests without one under --enable-deterministic-inference
MAX_BIAS = 1e30  # one that is infinite in float32, over the temperature too, takes stock SGLang 0.5.23's scheduler down


def _config() -> ServerConfig:
    config = server_config()
    assert config is not None
    return config


@handler(count_failure, refuse)
def verify(original: Call, self: "SamplingParams", vocab_size: int) -> None:
    """AROUND SamplingParams.verify: a LedParamError here becomes HTTP 400.

    This is where a request is parsed. The result stays in `custom_params`, for `resolve_one`.
    """
    original(self, vocab_size)
    for token, bias in (self.logit_bias or {}).items():
        if not _is_bias(bias):
            raise LedParamError(f"logit_bias[{token}] must be a number of at most {MAX_BIAS:g}, got {show(bias)}")
    custom = self.custom_params
    if custom is not None:
        check_custom_params(custom)
    params = parse_request(custom.get("led") if custom else None, _config())
    refuse_beams(getattr(self, "beam_width", None), params)
    if params is not None:
        self.custom_params = {**(custom or {}), RESOLVED_KEY: params.to_wire()}


def _is_bias(value: object) -> bool:
    try:
        return float(value) <= MAX_BIAS  # type: ignore[arg-type]
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


@handler(count_failure, refuse)
def add_to_responses(
    result: dict[str, Any],
    self: "ResponsesRequest",
    default_max_tokens: int | None = None,
    default_params: dict[str, Any] | None = None,
    stop: list[str] | None = None,
    tool_call_constraint: "ToolCallConstraint | None" = None,
) -> None:
    """AFTER ResponsesRequest.to_sampling_params: the parameters that `rewrite_body` left in `metadata.led`."""
    value = (self.metadata or {}).get("led")
    if value is not None:
        parsed = json.loads(value) if isinstance(value, str) else value
        result["custom_params"] = {**(result.get("custom_params") or {}), "led": parsed}


@handler(count_failure, refuse)
def resolve_one(self: "TokenizerManager", tokenized_obj: "TokenizedGenerateReqInput") -> None:
    """BEFORE TokenizerManager._send_one_request: write resolved parameters, seed and sample index into the request."""
    sampling = getattr(tokenized_obj, "sampling_params", None)
    if sampling is None or not hasattr(sampling, "custom_params"):
        return
    _refuse_empty(tokenized_obj)
    custom = sampling.custom_params or {}
    wire = custom.get(RESOLVED_KEY)
    if wire is None:
        return
    if is_probe(tokenized_obj.rid):
        sampling.custom_params = {key: value for key, value in custom.items() if key != RESOLVED_KEY} or None
        return
    params = LedParams.from_wire(wire)
    refuse_mask(params, [getattr(tokenized_obj, "return_sampling_mask", False)])
    if "sample" in wire:  # the next of n samples: the engine shares one SamplingParams among them
        resolved = ResolvedRequest(params, wire["seed"], wire["is_seeded"], wire["sample"] + 1)
    else:
        seed, is_seeded = _seed_of(self, tokenized_obj)
        resolved = ResolvedRequest(params, seed, is_seeded, 0)
    sampling.custom_params = {**custom, RESOLVED_KEY: resolved.to_wire()}
    _take_own_room(tokenized_obj, resolved.sample)
    state = self.rid_to_state.get(tokenized_obj.rid)
    if state is not None:
        state.led_view = RequestView(params)


def _take_own_room(tokenized_obj: "TokenizedGenerateReqInput", sample: int) -> None:
    """Of n samples between a prefill and a decode server: stock SGLang gives all of them one, and the second waits.

    Both servers take the same. The prompt that n samples share is sent before them, without a token.
    """
    room = getattr(tokenized_obj, "bootstrap_room", None)
    if room is None:
        return
    is_shared_prompt = tokenized_obj.sampling_params.max_new_tokens == 0
    if sample or is_shared_prompt:
        which = "prompt" if is_shared_prompt else sample
        digest = hashlib.blake2b(f"{room}/{which}".encode(), digest_size=8).digest()
        tokenized_obj.bootstrap_room = int.from_bytes(digest, "little") >> 1


def _seed_of(tokenizer_manager: "TokenizerManager", tokenized_obj: "TokenizedGenerateReqInput") -> tuple[int, bool]:
    """A request's seed, and whether the whole text follows from it.

    Of one that names none: drawn, but the prompt's own where the engine would answer alike every time.
    """
    sampling = tokenized_obj.sampling_params
    if sampling.sampling_seed is not None:
        return sampling.sampling_seed, True
    if getattr(tokenizer_manager.server_args, "enable_deterministic_inference", False):
        return DETERMINISTIC_SEED, True
    return prompt_seed(tokenized_obj) if sampling.top_k == 1 else secrets.randbits(63), False


def prompt_seed(tokenized_obj: "TokenizedGenerateReqInput") -> int:
    """63 bits of a hash of the prompt's ids, and of its embeddings where it is given as such."""
    digest = hashlib.blake2b(digest_size=8)
    for values, dtype in ((tokenized_obj.input_ids, "<i8"), (getattr(tokenized_obj, "input_embeds", None), "<f4")):
        digest.update(np.asarray([] if values is None else values, dtype).tobytes())
    return int.from_bytes(digest.digest(), "little") >> 1


def is_probe(rid: object) -> bool:
    """SGLang's /health generates a token; that is nobody's request, and no counter may show it."""
    return isinstance(rid, str) and rid.startswith(HEALTH_CHECK_RID_PREFIX)


@handler(count_failure, refuse)
def resolve_batch(self: "TokenizerManager", tokenized_objs: "list[TokenizedGenerateReqInput]") -> None:
    """BEFORE TokenizerManager._send_batch_request."""
    for tokenized_obj in tokenized_objs:
        resolve_one(self, tokenized_obj)


def _refuse_empty(tokenized_obj: "TokenizedGenerateReqInput") -> None:
    """An empty prompt takes stock SGLang 0.5.23's scheduler down."""
    ids = getattr(tokenized_obj, "input_ids", None)
    if getattr(tokenized_obj, "input_embeds", None) is None and ids is not None and len(ids) == 0:
        raise LedParamError("the prompt has no tokens: at least one is needed")
