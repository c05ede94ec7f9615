"""What /metrics says equals the sums over the traces of the same requests."""

import re
from bisect import bisect_left
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from led_sglang.embedded.problems import generate
from tests.server.servers import Server

DASHBOARD = Path(__file__).parents[3] / "grafana" / "led.json"
Samples = dict[tuple[str, str], float]


def scrape(server: Server) -> Samples:
    """(sample name, its label's value) to value, of our metrics."""
    text = httpx.get(f"{server.url}/metrics", timeout=60, follow_redirects=True).text
    return {
        (sample.name.removeprefix("led_sglang_"), next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        if family.name.startswith("led_sglang_")
        for sample in family.samples
    }


def ask(server: Server, i: int, question: str) -> dict[str, Any]:
    led: object = {"trace": True, "depth": (2, 8, 12)[i % 3], "top_k": (8, 4)[i % 2]} if i % 4 else False
    max_tokens = 9 if i % 5 == 1 else 200  # some end in the middle of a thought
    sampling = {"temperature": 0.9, "max_new_tokens": max_tokens, "custom_params": {"led": led}}
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    body = {"text": prompt, "sampling_params": sampling, "stream": False}
    answer = httpx.post(f"{server.url}/generate", json=body, timeout=120)
    answer.raise_for_status()
    meta: dict[str, Any] = answer.json()["meta_info"]
    return meta


@pytest.fixture(scope="module")
def measured(embedded_server: Server) -> tuple[Samples, list[dict[str, Any]]]:
    """The growth of every number over a mixed, concurrent load, and the meta_info of its requests."""
    questions = [problem.question for problem in generate("held_out", 12, seed=3)]
    before = scrape(embedded_server)
    with ThreadPoolExecutor(6) as pool:
        metas = list(pool.map(lambda i: ask(embedded_server, i, questions[i]), range(len(questions))))
    after = scrape(embedded_server)
    return {key: value - before[key] for key, value in after.items()}, metas


def test_counters_equal_the_sums_over_traces(measured: tuple[Samples, list[dict[str, Any]]]) -> None:
    growth, metas = measured
    traced = [meta for meta in metas if "led_think" in meta]
    decided = sum(depth is not None for meta in traced for depth in meta["led_depth"])
    explored = sum(sum(meta["led_explored"]) for meta in traced)
    assert decided > 100 and explored > 5
    assert growth["tokens_total", ""] == decided
    assert growth["explored_tokens_total", ""] == explored
    assert growth["thinking_tokens_total", ""] == sum(sum(meta["led_think"]) for meta in traced)
    assert growth["requests_total", "led"] == len(traced)
    assert growth["requests_total", "none"] == len(metas) - len(traced)
    assert growth["rows_total", "led"] == sum(meta["completion_tokens"] for meta in traced)
    assert growth["rows_total", "none"] == sum(meta["completion_tokens"] for meta in metas if meta not in traced)
    assert growth["fallbacks_total", "step_failed"] == growth["fallbacks_total", "not_finite"] == 0


def test_histograms_equal_those_of_the_traces(measured: tuple[Samples, list[dict[str, Any]]]) -> None:
    growth, metas = measured
    traced = [meta for meta in metas if "led_think" in meta]
    depths = Counter(
        depth
        for meta in traced
        for depth, explored in zip(meta["led_depth"], meta["led_explored"], strict=True)
        if explored
    )
    confidences = sorted(c for meta in traced for c in meta["led_confidence"] if c is not None)
    for (name, bound), value in growth.items():
        if name == "explore_depth_bucket":
            assert value == sum(count for depth, count in depths.items() if depth <= float(bound)), bound
        if name == "confidence_bucket":
            expected = [c for c in confidences if bisect_left([float(bound)], c) == 0]
            assert value == len(expected), bound
    assert growth["explore_depth_sum", ""] == sum(depth * count for depth, count in depths.items())
    assert growth["explore_depth_count", ""] == sum(depths.values())


def test_the_prefill_that_samples_share_counts_no_token(embedded_server: Server) -> None:
    """SGLang sends it as a request of its own that may generate nothing."""
    before = scrape(embedded_server)
    sampling = {"n": 3, "max_new_tokens": 5, "custom_params": {"led": {"trace": True, "phase": "all"}}}
    body = {"text": "<|im_start|>user\n3 + 4<|im_end|>\n", "sampling_params": sampling}
    metas = [
        sample["meta_info"] for sample in httpx.post(f"{embedded_server.url}/generate", json=body, timeout=120).json()
    ]
    growth = {key: value - before[key] for key, value in scrape(embedded_server).items()}
    assert len(metas) == 3
    assert growth["rows_total", "led"] == sum(meta["completion_tokens"] for meta in metas)
    assert growth["tokens_total", ""] == sum(len(meta["led_depth"]) for meta in metas)


def test_sglangs_own_numbers_are_still_there(embedded_server: Server) -> None:
    text = httpx.get(f"{embedded_server.url}/metrics", timeout=60, follow_redirects=True).text
    assert "sglang:generation_tokens_total" in text


def test_led_info_counts_the_same(embedded_server: Server) -> None:
    counters = httpx.get(f"{embedded_server.url}/led/info", timeout=60).json()["counters"]
    samples = scrape(embedded_server)
    assert counters["led_tokens"] == samples["tokens_total", ""]
    assert counters["explored_tokens"] == samples["explored_tokens_total", ""]
    assert sum(counters["depth_histogram"].values()) == samples["explore_depth_count", ""]


def test_the_dashboard_asks_for_metrics_that_exist(embedded_server: Server) -> None:
    names = {f"led_sglang_{name}" for name, _ in scrape(embedded_server)}
    requested = set(re.findall(r"led_sglang_\w+", DASHBOARD.read_text()))
    assert len(requested) > 6 and requested <= names
