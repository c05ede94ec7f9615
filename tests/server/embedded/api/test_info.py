"""GET /led/info says what runs; its counters grow by exactly what the answers report."""

from collections import Counter
from importlib.metadata import version

import httpx
import pytest

import led_sglang
from led_sglang.integration.hooks.table import HOOK_TARGETS
from tests.server.api import counters, generate, growth, wait_idle

pytestmark = pytest.mark.server


def test_what_runs(http: httpx.Client) -> None:
    info = http.get("/led/info").json()
    assert info["versions"] == {
        "led_sglang": led_sglang.__version__,
        "sglang": version("sglang"),
        "torch": version("torch"),
    }
    assert info["num_layers"] == 12
    assert info["captured_layers"] == list(range(1, 12)), "1-based: h^1 .. h^{L-1}"
    assert info["capture_buffer_bytes"] > 0
    assert info["defaults"] == {"led": True, "depth": 8, "top_k": 8, "phase": "think"}
    assert info["limits"] == {"max_depth": 12, "max_top_k": 256}
    for name, text in (("open", "<think>"), ("close", "</think>")):
        marker = info["markers"][name]
        assert marker["text"] == text
        assert len(marker["ids"]) == 1


def test_every_hook_is_verified(http: httpx.Client) -> None:
    hooks = http.get("/led/info").json()["hooks"]
    assert set(hooks) == set(HOOK_TARGETS)
    for target, hook in hooks.items():
        assert hook["verified"] is True, (target, hook["fault"])
        assert hook["fault"] is None
        assert hook["kind"] == HOOK_TARGETS[target].kind
        assert hook["why"]


def test_counters_grow_by_what_the_requests_report(http: httpx.Client) -> None:
    wait_idle(http)
    before = counters(http)
    leds = [{"trace": True}, {"trace": True, "phase": "all", "depth": 12}, {"trace": True, "exploit": False}]
    metas = [generate(http, led, sampling={"temperature": 1.2})["meta_info"] for led in leds]
    grown = growth(before, counters(http))
    depths: Counter[str] = Counter()
    for meta in metas:
        pairs = zip(meta["led_depth"], meta["led_explored"], strict=True)
        depths.update(str(depth) for depth, is_explored in pairs if is_explored)
    assert grown == {
        "led_tokens": sum(meta["led_stats"]["led_tokens"] for meta in metas),
        "thinking_tokens": sum(meta["led_stats"]["thinking_tokens"] for meta in metas),
        "explored_tokens": sum(meta["led_stats"]["explored_tokens"] for meta in metas),
        "fallbacks": 0,
        "fallback_reasons": {},
        "step_failures": 0,
        "report_failures": 0,
        "unresolved_requests": 0,
        "depth_histogram": dict(depths),
        "confidence_histogram": grown["confidence_histogram"],  # tests/server/embedded/test_metrics.py knows its bounds
        "tokens": {"led": sum(meta["completion_tokens"] for meta in metas)},
        "requests": {"led": 3},
    }
    assert grown["explored_tokens"] > 0


def test_led_off_counts_as_requests_and_tokens_and_nothing_more(http: httpx.Client) -> None:
    wait_idle(http)
    before = counters(http)
    for _ in range(3):
        generate(http, False, sampling={"max_new_tokens": 8})
    grown = growth(before, counters(http))
    assert grown.pop("requests") == {"none": 3}
    assert grown.pop("tokens") == {"none": 24}
    assert not any(grown.values())


def test_a_refused_request_is_not_counted(http: httpx.Client) -> None:
    wait_idle(http)
    before = counters(http)
    answer = http.post("/generate", json={"text": "a", "sampling_params": {"custom_params": {"led": {"depth": 0}}}})
    assert answer.status_code == 400
    assert counters(http) == before


def test_a_health_probe_is_nobodys_request(http: httpx.Client) -> None:
    wait_idle(http)
    before = counters(http)
    for _ in range(3):
        assert http.get("/health_generate").status_code == 200
    assert counters(http) == before
