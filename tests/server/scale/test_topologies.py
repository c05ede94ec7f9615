"""Servers of several processes, ranks and stages: every traced value is exact, every text that of one server."""

import contextlib
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.server.clients import Client, check, sharp_server
from tests.server.killing import ENDS_S, NUM_CLIENTS, kill_under_load
from tests.server.scale.cases import LIMITS, TOPOLOGIES, alone, sums
from tests.server.scale.conftest import Expected, ask
from tests.server.servers import Server, kill_scheduler

pytestmark = [pytest.mark.server, pytest.mark.full, pytest.mark.timeout(1800)]

ATTACHED = """
import sys
from sglang.srt.entrypoints.engine import Engine
engine = Engine.attach_tokenizer_worker(int(sys.argv[1]))
try:
    print(engine.generate(input_ids=[5, 6, 7], sampling_params={"max_new_tokens": 4}))
except Exception as error:
    print("refused:", error)
"""


def of_topology(name: str, expected: Expected, logs: Path) -> Server:
    topology = TOPOLOGIES[name]
    log = logs / f"scale_{name.replace(' ', '_')}.log"
    arguments = (*LIMITS, *topology.arguments)
    if topology.environment.get("SGLANG_CPU_OMP_THREADS_BIND"):
        arguments += ("--dist-init-addr", f"127.0.0.1:{free_ports(8)}")
    return sharp_server(expected.folder, log, *arguments, environment=topology.environment)


def free_ports(number: int) -> int:
    """The first of so many, where the kernel gives none to others: SGLang counts on those behind the one it is told."""
    for first in range(20000 + os.getpid() % 1000 * number, 30000, number):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + number):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no free ports")


def check_served(client: Client, expected: Expected) -> list[dict[str, object]]:
    """Exact, the texts of one server, every token reported and counted, every hook in place; the `meta_info`s."""
    replies = ask(client)
    comparison = check(expected.oracle, *replies)
    assert comparison.num_active > 60 and comparison.num_explored > 5, "hardly anything was compared"
    assert [reply.output_ids for reply in replies] == expected.texts
    info = client.get("/led/info")
    assert all(hook["verified"] for hook in info["hooks"].values()), info["hooks"]
    counters = info["counters"]
    assert counters["step_failures"] == counters["report_failures"] == counters["unresolved_requests"] == 0
    # The server's own warm-up was a request too.
    assert all(counters[key] >= value for key, value in sums(replies).items()), (counters, sums(replies))
    assert counters["fallbacks"] == 0
    assert counters["requests"]["led"] >= len(replies)
    assert sum(info["form"]["steps"].values()) > 0 and info["captured_layers"] == list(range(4, 12))
    return [reply.meta for reply in replies]


def check_killed(server: Server, expected: Expected, rank: str) -> None:
    """A rank of many is killed under load: the server ends, no client waits for it, no process is left."""
    children: list[psutil.Process] = []
    kill_under_load(
        server.url, alone().body(), expected.texts[-1], lambda: children.extend(kill_scheduler(server, rank))
    )
    assert server.process.wait(ENDS_S) != 0
    assert psutil.wait_procs(children, ENDS_S)[1] == []


def test_token_ids(expected: Expected, logs: Path) -> None:
    """--skip-tokenizer-init, as trainers start the engine."""
    with of_topology("token ids", expected, logs) as server:
        check_served(Client(server.url), expected)


def test_expert_parallelism(expected: Expected, logs: Path) -> None:
    """A layer's output is whole where it is captured, whichever rank had the experts."""
    with of_topology("expert parallelism", expected, logs) as server:
        check_served(Client(server.url), expected)


@pytest.mark.parametrize("name", ["dp attention", "experts and dp attention", "dp attention over pairs"])
def test_dp_attention(name: str, expected: Expected, logs: Path) -> None:
    """A batch's rows live on the ranks of one data-parallel rank, and collectives are among these."""
    with of_topology(name, expected, logs) as server:
        metas = check_served(Client(server.url), expected)
        assert {meta["dp_rank"] for meta in metas} == {0, 1}, "one data-parallel rank did all the work"
        check_killed(server, expected, "DP1")


@pytest.mark.parametrize("name", ["pipeline", "pipeline of pairs"])
def test_pipeline(name: str, expected: Expected, logs: Path) -> None:
    """The last stage decides, the first one answers, counts and reports."""
    with of_topology(name, expected, logs) as server:
        check_served(Client(server.url), expected)
        check_killed(server, expected, "PP1")


def test_tokenizer_workers(expected: Expected, logs: Path) -> None:
    """Any worker resolves, validates and tells; requests of a front end that does not are refused by the scheduler."""
    with of_topology("tokenizer workers", expected, logs) as server:
        client = Client(server.url)
        check_served(client, expected)
        body = alone().body()
        body["sampling_params"]["custom_params"]["led"]["depth"] = 0

        def refused(_: int) -> str:
            answer = httpx.post(f"{server.url}/generate", json=body, timeout=120)
            assert answer.status_code == 400, answer.text
            return answer.text

        with ThreadPoolExecutor(8) as pool:  # a connection each: both workers get some
            assert all("depth" in text for text in pool.map(refused, range(24)))
        infos = [client.get("/led/info")["counters"] for _ in range(12)]
        assert all(info == infos[0] for info in infos), "a worker tells its own numbers only"
        attached = subprocess.run(
            [sys.executable, "-c", ATTACHED, str(server.process.pid)], capture_output=True, text=True, timeout=600
        )
        assert "refused:" in attached.stdout and "LED parameters" in attached.stdout, attached.stdout + attached.stderr
        assert client.get("/led/info")["counters"]["unresolved_requests"] == 1
        check_worker_killed(server, expected)


def check_worker_killed(server: Server, expected: Expected) -> None:
    """The requests of a dead worker end in an error; those of the other one go on, and new ones are answered."""
    found = workers(server)
    assert len(found) == 2
    spared = kill_under_load(server.url, alone().body(), expected.texts[-1], found[0].kill, stop_s=20.0)
    assert 0 < spared < NUM_CLIENTS
    assert [reply.output_ids for reply in ask(Client(server.url))] == expected.texts


def workers(server: Server) -> list[psutil.Process]:
    """Processes that take connections, but for the one that starts them."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    listening = psutil.CONN_LISTEN, server.port
    return [
        child
        for child in children
        if any((each.status, each.laddr.port) == listening for each in child.net_connections("inet") if each.laddr)
    ]
