"""Two data-parallel engines behind one address, and two nodes with a tensor-parallel rank each (on one machine)."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from led_sglang.serving.ports import HeldPort
from led_sglang.testing import check_trace
from tests.server.api import GENERATE, body, generate
from tests.server.killing import ENDS_S, kill_under_load
from tests.server.servers import Server, kill_scheduler

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]
AT_ONCE = {"SGLANG_CUDA_COREDUMP_BEFORE_CRASH_WAIT_SECS": "0"}  # a dying server waits a minute for dumps
SEEDED = {"sampling_seed": 5, "temperature": 1.0}


@pytest.fixture(scope="module")
def expected(embedded_server: Server) -> dict[str, Any]:
    """The answer of one engine on one rank."""
    with httpx.Client(base_url=embedded_server.url, timeout=120) as client:
        return traced(client)


def traced(client: httpx.Client) -> dict[str, Any]:
    return generate(client, {"trace": True}, sampling=SEEDED)


def check_same(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    """Ranks add up partial products in another order: the same tokens, numbers to within rounding."""
    assert answer["output_ids"] == expected["output_ids"]
    for key in ("led_explored", "led_depth", "led_think"):
        assert answer["meta_info"][key] == expected["meta_info"][key]
    assert answer["meta_info"]["led_confidence"] == pytest.approx(expected["meta_info"]["led_confidence"], abs=1e-4)


def test_data_parallel_engines(expected: dict[str, Any], logs: Path) -> None:
    with (
        Server("--dp-size", "2", "--enable-metrics", log=logs / "data_parallel.log") as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        answers = [traced(client) for _ in range(4)]
        for answer in answers:
            check_trace(answer["meta_info"])
            check_same(answer, expected)
        assert {answer["meta_info"]["dp_rank"] for answer in answers} == {0, 1}, "one engine did all the work"
        info = client.get("/led/info").json()
        led_tokens = sum(answer["meta_info"]["led_stats"]["led_tokens"] for answer in answers)
        assert sum(info["form"]["steps"].values()) >= led_tokens, "an engine's steps are missing"
        assert all(hook["verified"] for hook in info["hooks"].values())
        assert f"led_sglang_tokens_total {float(info['counters']['led_tokens'])}" in client.get("/metrics").text


def test_two_nodes(expected: dict[str, Any], logs: Path) -> None:
    meeting = HeldPort()
    shared = ("--tp-size", "2", "--nnodes", "2", "--dist-init-addr", f"127.0.0.1:{meeting.number}")
    second = Server(*shared, "--node-rank", "1", log=logs / "second_node.log", environment=AT_ONCE)
    try:
        with (
            Server(*shared, "--node-rank", "0", log=logs / "first_node.log", environment=AT_ONCE) as first,
            httpx.Client(base_url=first.url, timeout=120) as client,
        ):
            answer = traced(client)
            check_trace(answer["meta_info"])
            check_same(answer, expected)
            assert second.process.poll() is None
            request = body(GENERATE, {}, 64)
            request["sampling_params"].update(SEEDED)
            kill_under_load(first.url, request, expected["output_ids"], lambda: kill_scheduler(second))
            assert first.process.wait(ENDS_S) != 0
            assert second.process.wait(ENDS_S) == 0  # as SGLang has it on all nodes but the first
    finally:
        second.stop()
        meeting.release()
