"""/metrics when the scheduler answers, is busy, fails, or is not there yet; a scrape always gets an answer."""

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from sglang.srt.entrypoints import http_server

from led_sglang.config.methods import METHODS
from led_sglang.config.server import ENV_CONFIG, ServerConfig, export_config
from led_sglang.integration.http import info, metrics, responses
from led_sglang.integration.scheduler.reports.counters import Counts


@pytest.fixture(autouse=True)
def _configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ENV_CONFIG, "")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(http_server, "get_global_state", lambda: SimpleNamespace(tokenizer_manager=None))
    answers = responses.Answers()
    for module in (responses, info, metrics):
        monkeypatch.setattr(module, "ANSWERS", answers)
    export_config(ServerConfig(methods=("led", "dola")))
    return


class Scheduler:
    """What it has counted, told when `ready` is set."""

    def __init__(self) -> None:
        self.counts = Counts(8, torch.device("cpu"))
        self.counts.correct([5, 5 | 2 | 3 << 8], [METHODS.index("led")] * 2, 1)
        self.ready = asyncio.Event()
        self.num_asked = 0

    async def status(self, manager: Any) -> dict[str, Any]:
        self.num_asked += 1
        await self.ready.wait()
        return {"counters": self.counts.status()}


@pytest.fixture
async def scheduler(monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    scheduler = Scheduler()
    monkeypatch.setattr(info, "scheduler_status", scheduler.status)
    return scheduler


async def scrape(app: metrics.Metrics) -> str:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://led") as client:
        answer = await client.get("/metrics")
    assert answer.status_code == 200
    return answer.text


async def test_the_schedulers_counters_are_reported(scheduler: Scheduler) -> None:
    scheduler.ready.set()
    text = await scrape(metrics.Metrics())
    assert "led_sglang_tokens_total 2.0" in text and "led_sglang_explored_tokens_total 1.0" in text
    assert 'led_sglang_explore_depth_bucket{le="2.0"} 0.0' in text
    assert 'led_sglang_explore_depth_bucket{le="3.0"} 1.0' in text and "led_sglang_explore_depth_sum 3.0" in text
    rows = [line.split('"')[1] for line in text.splitlines() if line.startswith("led_sglang_rows_total")]
    assert rows == ["led", "dola", "none"], "what the server offers, and no more"


async def test_a_busy_scheduler_is_asked_once(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metrics, "PATIENCE_S", 0.05)
    app = metrics.Metrics()
    with caplog.at_level(logging.WARNING):
        assert [await scrape(app), await scrape(app)] == ["", ""]
    assert "did not answer in 0.05 s" in caplog.text and scheduler.num_asked == 1
    scheduler.ready.set()
    assert "led_sglang_tokens_total 2.0" in await scrape(app), "the answer to the first question"
    assert "led_sglang_tokens_total 2.0" in await scrape(app) and scheduler.num_asked == 2


@pytest.mark.parametrize("answer", [{}, {"counters": None}])
async def test_a_scheduler_without_counters(
    answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def status(manager: Any) -> dict[str, Any]:
        return answer

    monkeypatch.setattr(info, "scheduler_status", status)
    assert await scrape(metrics.Metrics()) == ""
    assert "the scheduler did not tell them" in caplog.text


async def test_before_the_server_is_up(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "get_global_state", lambda: None)
    assert await scrape(metrics.Metrics()) == "" and scheduler.num_asked == 0
