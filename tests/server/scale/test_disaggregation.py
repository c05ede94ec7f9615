"""A prefill and a decode server, behind what people put before them: exact from the first token, the texts of one."""

import contextlib
import importlib.util
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from led_sglang.serving.ports import HeldPort
from tests.server.api import joined, streamed
from tests.server.clients import Client, Reply, check, sharp_server
from tests.server.killing import ENDS_S, NUM_CLIENTS, kill_under_load
from tests.server.scale import transfer
from tests.server.scale.cases import LIMITS, alone, several, sums, together
from tests.server.scale.conftest import Expected, ask
from tests.server.servers import Server, kill_scheduler

pytestmark = [pytest.mark.server, pytest.mark.full, pytest.mark.timeout(1800)]

# Stock SGLang's prefill server records a CUDA event before it sends a prefix early, its decode server backs retractions
# up in pinned memory: neither is there without a GPU.
NOT_EARLY = {"SGLANG_DISAGG_PREFILL_EARLY_SEND_CACHED_PREFIX": "false"}
PREFILL = ("--disaggregation-mode", "prefill")
DECODE = ("--disaggregation-mode", "decode", "--disaggregation-decode-retraction-backup", "cpu_tensor")
BACKEND = ("--disaggregation-transfer-backend", "nixl")
LOAD = 300  # requests


@dataclass(frozen=True)
class Pair:
    prefill: Server
    decode: Server

    def counters(self) -> dict[str, int]:
        """Of both: the first token of a request is counted where it was sampled."""
        infos = [Client(server.url).get("/led/info") for server in (self.prefill, self.decode)]
        for info in infos:
            assert all(hook["verified"] for hook in info["hooks"].values()), info["hooks"]
        names = "led_tokens", "thinking_tokens", "explored_tokens", "fallbacks", "step_failures", "report_failures"
        return {name: sum(info["counters"][name] for info in infos) for name in (*names, "unresolved_requests")}


@pytest.fixture(scope="module")
def pair(expected: Expected, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("transfer")
    environment = NOT_EARLY | transfer.environment(folder / "plugin", folder / "rooms")

    def start(name: str, *arguments: str) -> Server:
        log = logs / f"scale_{name}.log"
        return sharp_server(expected.folder, log, *LIMITS, *BACKEND, *arguments, environment=environment)

    with contextlib.ExitStack() as stack:
        servers = [start("prefill", *PREFILL), start("decode", *DECODE)]  # both load at once
        for server in servers:
            stack.enter_context(server)
        yield Pair(*servers)


@contextlib.contextmanager
def front(module: str, pair: Pair, log: Path, *more: str) -> Iterator[Client]:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install led_sglang[gateway]")
    roles = ("--pd-disaggregation", "--prefill", pair.prefill.url, "--decode", pair.decode.url)
    with (
        HeldPort() as metrics,
        Server(
            *roles, "--prometheus-port", str(metrics.number), *more, log=log, module=f"{module}.launch_router"
        ) as server,
    ):
        yield Client(server.url)


@pytest.fixture(scope="module")
def balancer(pair: Pair, logs: Path) -> Iterator[Client]:
    """SGLang's mini load balancer."""
    with front("sglang_router", pair, logs / "mini_lb.log", "--mini-lb") as client:
        yield client


def test_mini_load_balancer(balancer: Client, pair: Pair, expected: Expected) -> None:
    """Every token's record is exact, the first one's too, which another server sampled."""
    before = pair.counters()
    replies = ask(balancer)
    comparison = check(expected.oracle, *replies)
    assert comparison.num_active > 60 and comparison.num_explored > 5, "hardly anything was compared"
    assert [reply.output_ids for reply in replies] == expected.texts
    after = pair.counters()
    grown = {name: after[name] - before[name] for name in sums(replies)}
    assert grown == sums(replies)
    assert not any(after[name] for name in ("fallbacks", "step_failures", "report_failures", "unresolved_requests"))


def test_samples(balancer: Client, expected: Expected) -> None:
    """n = 3: stock SGLang gives all samples of a request one room, and does not answer."""
    replies = balancer.samples(several(), 3)
    check(expected.oracle, *replies)
    assert [reply.output_ids for reply in replies] == expected.samples
    assert len({tuple(text) for text in expected.samples}) == 3


def test_stream(balancer: Client, expected: Expected) -> None:
    with httpx.Client(base_url=balancer.url, timeout=120) as http:
        [answer] = joined(streamed(http, alone().body()), is_incremental=False)
    reply = Reply(alone(), answer)
    check(expected.oracle, reply)
    assert reply.output_ids == expected.texts[-1]


def test_smg(pair: Pair, expected: Expected, logs: Path) -> None:
    with front("smg", pair, logs / "smg_pd.log", "--disable-tokenizer-autoload") as client:
        wait_routed(client)
        requests = together()
        passed_on = [i for i, request in enumerate(requests) if not request.query.logit_bias]  # smg drops a logit_bias
        assert len(passed_on) == len(requests) - 1
        replies = client.together([requests[i] for i in passed_on])
        check(expected.oracle, *replies)
        assert [reply.output_ids for reply in replies] == [expected.texts[i] for i in passed_on]
        assert [reply.output_ids for reply in client.samples(several(), 3)] == expected.samples


def wait_routed(client: Client, limit_s: float = 60.0) -> None:
    """A gateway is healthy before it knows its workers."""
    deadline = time.monotonic() + limit_s
    body = alone().body()
    while (answer := httpx.post(f"{client.url}/generate", json=body, timeout=120)).status_code != 200:
        assert time.monotonic() < deadline, f"no way to the servers after {limit_s} s: {answer.text}"
        time.sleep(0.5)


def test_bad_input(balancer: Client) -> None:
    """Both servers refuse it, and the pair goes on."""
    body = alone().body()
    body["sampling_params"]["custom_params"]["led"]["depth"] = 0
    answer = httpx.post(f"{balancer.url}/generate", json=body, timeout=120)
    assert answer.status_code == 400 and "depth" in answer.text


def test_load_with_aborts(balancer: Client, pair: Pair, expected: Expected) -> None:
    """Every third client goes away after its first token. The others get their texts; in the end nothing is left."""
    requests = [*together(), alone()]

    def send(number: int) -> int:
        """Texts that came whole."""
        i = number % len(requests)
        body = requests[i].body()
        if number % 3:
            assert balancer.post("/generate", body)["output_ids"] == expected.texts[i]
            return 1
        url = f"{balancer.url}/generate"
        with httpx.stream("POST", url, json=body | {"stream": True}, timeout=120) as answer:
            assert answer.status_code == 200
            next(answer.iter_lines())
        return 0

    before = pair.counters()
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        assert sum(pool.map(send, range(LOAD))) == LOAD * 2 // 3
    after = pair.counters()
    assert after["led_tokens"] > before["led_tokens"] + LOAD
    assert not any(after[name] for name in ("fallbacks", "step_failures", "report_failures", "unresolved_requests"))
    for server in (pair.prefill, pair.decode):
        wait_idle(server)


def wait_idle(server: Server) -> None:
    """A server flushes its cache where no request is left."""
    deadline = time.monotonic() + ENDS_S
    while (answer := httpx.post(f"{server.url}/flush_cache", timeout=ENDS_S)).status_code != 200:
        assert time.monotonic() < deadline, f"requests are left: {answer.text}"
        time.sleep(0.5)


def test_a_prefill_server_is_killed_under_load(balancer: Client, pair: Pair, expected: Expected) -> None:
    """The last test. What it has handed over ends as it would have, the rest in an error, soon; the other one lives."""
    kill_under_load(balancer.url, alone().body(), expected.texts[-1], lambda: kill_scheduler(pair.prefill))
    assert pair.prefill.process.wait(ENDS_S) != 0
    assert httpx.get(f"{pair.decode.url}/health_generate", timeout=ENDS_S).status_code == 200
    counters = Client(pair.decode.url).get("/led/info")["counters"]
    assert counters["step_failures"] == counters["fallbacks"] == counters["report_failures"] == 0
