"""Two replicas behind SGLang's gateways: parameters and answers survive the way, and the death of one replica."""

import contextlib
import importlib.util
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from led_sglang.serving.ports import HeldPort
from led_sglang.testing import check_trace
from tests.server.api import CHAT, DEFAULTS, GENERATE, body, message_of
from tests.server.embedded.conftest import Spare
from tests.server.servers import Server

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]
SHARED = ("--policy", "round_robin", "--health-check-interval-secs", "1", "--health-failure-threshold", "1")


@pytest.fixture(scope="module")
def replicas(embedded_server: Server, spare: Spare) -> tuple[Server, Server]:
    return embedded_server, spare.get()


@contextlib.contextmanager
def gateway(module: str, replicas: tuple[Server, Server], log: Path, *more: str) -> Iterator[Server]:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install led_sglang[gateway]")
    urls = [replica.url for replica in replicas]
    with HeldPort() as metrics:
        arguments = ("--worker-urls", *urls, *SHARED, "--prometheus-port", str(metrics.number), *more)
        with Server(*arguments, log=log, module=f"{module}.launch_router") as server:
            yield server


@pytest.fixture(scope="module")
def smg(replicas: tuple[Server, Server], logs: Path) -> Iterator[httpx.Client]:
    with (
        gateway("smg", replicas, logs / "smg.log", "--disable-tokenizer-autoload") as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        wait_registered(client, replicas)
        yield client


@pytest.fixture(scope="module")
def router(replicas: tuple[Server, Server], logs: Path) -> Iterator[httpx.Client]:
    with (
        gateway("sglang_router", replicas, logs / "router.log") as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        wait_registered(client, replicas)
        yield client


def wait_registered(client: httpx.Client, replicas: tuple[Server, Server], limit_s: float = 60.0) -> None:
    """A gateway is healthy before it knows its workers: until both have answered through it."""
    before, deadline = requests_of(replicas), time.monotonic() + limit_s
    while True:
        answer = client.post(CHAT, json=body(CHAT, max_tokens=1))
        if answer.status_code == 200 and min(growth(before, requests_of(replicas), "led")) > 0:
            return
        assert time.monotonic() < deadline, f"no way to both replicas after {limit_s} s: {answer.text}"
        time.sleep(0.2)


def requests_of(replicas: tuple[Server, Server]) -> list[dict[str, int]]:
    return [httpx.get(f"{replica.url}/led/info", timeout=60).json()["counters"]["requests"] for replica in replicas]


def growth(before: list[dict[str, int]], after: list[dict[str, int]], method: str) -> list[int]:
    return [new.get(method, 0) - old.get(method, 0) for old, new in zip(before, after, strict=True)]


def test_smg_hands_everything_on(smg: httpx.Client, replicas: tuple[Server, Server]) -> None:
    before = requests_of(replicas)
    led = {"depth": 3, "trace": True}
    for _ in range(4):
        meta = smg.post(CHAT, json=body(CHAT, led, return_meta_info=True)).json()["choices"][0]["meta_info"]
        assert meta["led_params"] == {**DEFAULTS, **led}
        check_trace(meta)
        check_trace(smg.post(GENERATE, json=body(GENERATE, led)).json()["meta_info"])
    grown = growth(before, requests_of(replicas), "led")
    assert sum(grown) == 8
    assert min(grown) > 0, "both replicas have worked"


@pytest.mark.parametrize("stream", [False, True])
def test_smg_hands_refusals_on(smg: httpx.Client, stream: bool) -> None:
    answer = smg.post(CHAT, json=body(CHAT, {"depth": 99}, stream=stream))
    assert answer.status_code == 400
    assert "depth must be an integer in [1, 12]" in message_of(answer)


def test_the_old_router_needs_metadata(router: httpx.Client, replicas: tuple[Server, Server]) -> None:
    """It drops custom_params and return_meta_info, so what was applied shows in the replicas' counters only."""
    before = requests_of(replicas)
    for led in (False, {"depth": 3}):
        answer = router.post(CHAT, json=body(CHAT, metadata={"led": json.dumps(led)}))
        assert answer.status_code == 200, answer.text
    assert router.post(CHAT, json=body(CHAT, False)).status_code == 200  # dropped: the server's default holds
    after = requests_of(replicas)
    assert sum(growth(before, after, "none")) == 1
    assert sum(growth(before, after, "led")) == 2
    refused = router.post(CHAT, json=body(CHAT, metadata={"led": '{"depth": 99}'}))
    assert refused.status_code == 400
    assert "depth must be an integer in [1, 12]" in refused.text


def test_the_old_router_drops_parameters_of_generate_and_meta_info_shows_it(router: httpx.Client) -> None:
    meta = router.post(GENERATE, json=body(GENERATE, {"depth": 3})).json()["meta_info"]
    assert meta["led_params"] == DEFAULTS, "the router learnt to pass custom_params: say so in docs/deploy.md"


def test_a_replica_dies_under_load(smg: httpx.Client, replicas: tuple[Server, Server]) -> None:
    """The last test of this file: it leaves one replica."""
    victim = replicas[1]
    request = body(CHAT, {"trace": True}, 48, return_meta_info=True, ignore_eos=True)

    def ask(i: int) -> httpx.Response:
        if i == 12:
            os.killpg(victim.process.pid, signal.SIGKILL)
        return smg.post(CHAT, json=request)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(40)))
    lost = [answer for answer in answers if answer.status_code != 200]
    assert len(lost) <= 8, "no more than were on their way when it died"
    assert all(answer.status_code >= 500 for answer in lost), "and these say so"
    later = [smg.post(CHAT, json=request) for _ in range(6)]
    for answer in (*later, *(answer for answer in answers if answer.status_code == 200)):
        assert answer.status_code == 200
        choice: dict[str, Any] = answer.json()["choices"][0]
        check_trace(choice["meta_info"])
        assert choice["meta_info"]["led_stats"]["led_tokens"] > 0
