"""Requests whose sampling mask could not be told are refused, before a stream begins where the body shows it."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.layers import logits_processor

from led_sglang.config.checks import LedParamError
from led_sglang.config.fields import LedParams
from led_sglang.config.methods import METHODS
from led_sglang.config.server import ENV_CONFIG, ServerConfig, export_config
from led_sglang.integration.http import requests
from led_sglang.integration.http.app import rewrite_body

LIMIT = 16
PATHS = ("/v1/chat/completions", "/v1/completions", "/generate")
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "noise in the inputs": ({"method": "soft_thinking_gumbel"}, ("led.method", "soft_thinking_gumbel", "mask")),
    "too many candidates": ({"top_k": 17}, ("led.top_k", "[1, 16]", "17", "--sampling-mask-max-tokens")),
}
ANSWERED: list[Any] = [{"top_k": 16}, False, True, {"trace": True}, {"method": "soft_thinking"}]
ANSWERED += [{"method": method} for method in METHODS if not method.startswith("soft") and method != "led"]


@pytest.fixture(autouse=True)
def _configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_CONFIG, "")
    export_config(ServerConfig(methods=METHODS, num_layers=12, max_depth=12, open_ids=(5,), close_ids=(6,)))
    features = SimpleNamespace(sampling_mask_max_tokens=LIMIT)
    monkeypatch.setattr(requests, "get_exec", lambda: SimpleNamespace(features=features))


def body(path: str, led: Any, mask: Any) -> bytes:
    custom = {"custom_params": {"led": led}}
    sampling = {"sampling_params": custom} if path == "/generate" else custom
    return json.dumps({"return_sampling_mask": mask, "stream": True, **sampling}).encode()


def send(led: Any, mask: bool) -> Any:
    """On the way to the scheduler: where requests of the offline Engine are seen too."""
    sampling: Any = SimpleNamespace(custom_params={"led": led}, sampling_seed=None, top_k=-1, logit_bias=None)
    requests.verify(lambda *_: None, sampling, 100)
    request = SimpleNamespace(sampling_params=sampling, input_ids=[1], rid="r", return_sampling_mask=mask)
    manager: Any = SimpleNamespace(server_args=SimpleNamespace(), rid_to_state={})
    requests.resolve_one(manager, request)
    return request


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    led, words = REFUSED[name]
    for ask in (
        *(lambda path=path: rewrite_body(body(path, led, True), path) for path in PATHS),
        lambda: send(led, True),
    ):
        with pytest.raises(LedParamError) as error:
            ask()
        assert all(word in str(error.value) for word in words), error.value


def test_a_list_of_masks_is_of_the_prompts_in_order() -> None:
    gumbel, plain = ({"custom_params": {"led": {"method": method}}} for method in ("soft_thinking_gumbel", "none"))
    for sampling, masks in ((gumbel, [False, True]), ([gumbel, plain], [True, False])):
        with pytest.raises(LedParamError, match="soft_thinking_gumbel"):
            rewrite_body(json.dumps({"return_sampling_mask": masks, "sampling_params": sampling}).encode(), "/generate")
    rewrite_body(
        json.dumps({"return_sampling_mask": [False, True], "sampling_params": [gumbel, plain]}).encode(), "/generate"
    )


@pytest.mark.parametrize("led", [led for led, _ in REFUSED.values()])
def test_without_a_mask_nothing_is(led: Any) -> None:
    for path in PATHS:
        for mask in (False, None):
            rewrite_body(body(path, led, mask), path)
    send(led, False)


@pytest.mark.parametrize("led", ANSWERED, ids=str)
def test_answered(led: Any) -> None:
    for path in PATHS:
        rewrite_body(body(path, led, True), path)
    send(led, True)


def test_the_servers_default_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    export_config(ServerConfig(top_k=LIMIT + 1, num_layers=12, open_ids=(5,), close_ids=(6,)))
    with pytest.raises(LedParamError, match=r"led\.top_k"):
        send(None, True)


def test_an_older_sglang_has_nothing_to_write_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(logits_processor, "SamplingMaskOutput")
    requests._masks_are_tensors.cache_clear()
    try:
        with pytest.raises(LedParamError, match=r"0\.5\.23"):
            requests.refuse_mask(LedParams(), [True])
        requests.refuse_mask(LedParams(method="none"), [True])
        requests.refuse_mask(None, [True])
    finally:
        requests._masks_are_tensors.cache_clear()
