"""What goes wrong inside a step stays inside its rows, is counted, and is gone with the next step; nothing hangs.

The faults are forced by a second plugin (`fault_plugin.py`) in one server, which the last test kills.
"""

import json
import resource
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.soak.oracle import thinking_flags
from led_sglang.config.methods import METHOD_TABLE
from led_sglang.testing import Reply
from tests.server import fault_plugin
from tests.server.bystanders import (  # three of them fixtures
    FLICKERING,
    OFF,
    REFERENCE,
    alone,
    check_bystanders,
    check_states,
    client,
    failures,
    num_faults,
    switch,
)
from tests.server.checkpoints import CLOSE_ID, OPEN_ID
from tests.server.clients import Client, Request, thinking_prompt
from tests.server.fault_plugin import LATENTS, LOGITS, RAISING, SEEDS
from tests.server.recompute import Query
from tests.server.servers import Server, kill_scheduler

__all__ = ["alone", "client", "switch"]
pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]
METHODS = tuple(name for name, method in METHOD_TABLE.items() if not method.is_always_enabled)


@pytest.fixture(scope="module")
def faulty(logs: Path, switch: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    environment = fault_plugin.install(tmp_path_factory.mktemp("plugin"))
    environment[fault_plugin.SWITCH] = str(switch)
    environment["SGLANG_SANITIZE_NAN_LOGITS"] = "1"  # without it stock SGLang's own sampler dies of such logits
    methods = ("--led-methods", ",".join(("led", *METHODS)))
    with Server(*methods, log=logs / "faults.log", environment=environment) as server:
        yield server


def test_our_hooks_are_verified_beside_another_plugins(client: Client, alone: tuple[Reply, Reply]) -> None:
    """Both plugins hook LogitsProcessor.forward."""
    info = client.get("/led/info")
    assert all(hook["verified"] for hook in info["hooks"].values()), info["hooks"]
    assert alone[0].meta["led_stats"]["led_tokens"] > 0 and alone[0].meta["led_stats"]["fallbacks"] == 0
    assert check_states(alone[0]) == 0


@pytest.mark.parametrize("fault", RAISING)
def test_an_exception_in_the_step(fault: str, client: Client, alone: tuple[Reply, Reply]) -> None:
    before = failures(client)
    query = replace(FLICKERING, phase="all") if fault == "draw_seeded" else FLICKERING
    request = Request(thinking_prompt(20), query, num_tokens=48, seed=SEEDS[fault], return_logprob=True)
    reply, off = client.together([request, OFF])
    assert failures(client) - before >= 20, "every second step of it should have failed"
    stats = reply.meta["led_stats"]
    if fault not in ("begin", "finish"):  # begun again after the forward; by the finish the token is LED's
        assert stats["fallbacks"] > 0
    assert len(set(thinking_flags(request.prompt_ids, reply.output_ids, [OPEN_ID], [CLOSE_ID]))) == 2
    assert check_states(reply) <= stats["fallbacks"]
    assert off.output_ids == alone[1].output_ids
    assert client.generate(REFERENCE).output_ids == alone[0].output_ids
    assert client.get("/led/info")["counters"]["report_failures"] == 0


@pytest.mark.parametrize("fault", [*LOGITS, *LATENTS])
def test_numbers_that_are_none(fault: str, client: Client, alone: tuple[Reply, Reply]) -> None:
    """The row falls back to the engine's token and is counted; its neighbours are not touched."""
    before = client.get("/led/info")["counters"]
    query = Query(temperature=1.0, exploit=fault not in LATENTS)  # without exploiting, every step needs its latents
    request = Request(thinking_prompt(21), query, num_tokens=16, seed=SEEDS[fault])
    reply, reference, off = client.together([request, REFERENCE, OFF])
    stats = reply.meta["led_stats"]
    if fault == "one nan logit":  # a token like one that a grammar forbids
        assert stats["fallbacks"] == 0 < stats["led_tokens"]
    else:
        assert stats["fallbacks"] == sum(reply.meta["led_think"]) > 0
        assert set(reply.meta["led_depth"]) == {None}
    assert check_states(reply) == 0
    assert reference.meta["led_stats"]["fallbacks"] == 0
    assert reference.output_ids == alone[0].output_ids
    assert off.output_ids == alone[1].output_ids
    after = client.get("/led/info")["counters"]
    assert after["fallbacks"] - before["fallbacks"] == stats["fallbacks"]
    assert after["step_failures"] == before["step_failures"]


@pytest.mark.parametrize("method", METHODS)
def test_the_other_methods_answer_too(method: str, client: Client, alone: tuple[Reply, Reply]) -> None:
    faults = [*LOGITS, *LATENTS, "decide"]
    requests = [Request(thinking_prompt(30 + i), num_tokens=8, seed=SEEDS[f]) for i, f in enumerate(faults)]
    replies = client.together([replace(request, led={"method": method}) for request in requests])
    assert all(len(reply.output_ids) == 8 for reply in replies)
    assert client.generate(REFERENCE).output_ids == alone[0].output_ids


TRAFFIC = [
    Request(thinking_prompt(40), FLICKERING, num_tokens=24, seed=7),
    OFF,
    Request(thinking_prompt(41), FLICKERING, num_tokens=10, seed=8),
    Request(thinking_prompt(42), Query(temperature=1.0), num_tokens=14, seed=9, led={"method": "soft_thinking"}),
]
FAILED = 500


def check_answers(url: str, engine_tokens: list[int]) -> None:
    """One round of all kinds of requests: each is answered right, or refused with what happened."""

    def ask(delay: float, request: Request) -> httpx.Response:
        time.sleep(delay)  # so that batches are merged
        return httpx.post(f"{url}/generate", json=request.body(), timeout=100)

    with ThreadPoolExecutor(len(TRAFFIC)) as pool:
        answers = list(pool.map(ask, (0.0, 0.03, 0.06, 0.09), TRAFFIC))
    for request, answer in zip(TRAFFIC, answers, strict=True):
        if answer.status_code == FAILED:
            assert "LED failed (" in answer.json()["error"]["message"]
            continue
        assert answer.status_code == 200, answer.text
        reply = Reply(request, answer.json())
        assert len(reply.output_ids) == request.num_tokens
        assert "__led" not in reply.meta and "__led_step" not in reply.meta, "ours alone"
        if request is OFF:
            assert reply.output_ids == engine_tokens
        elif request.led is None:
            stats = reply.meta["led_stats"]
            num_unreported = stats.get("unreported", 0)
            if "led_think" in reply.meta:
                assert check_states(reply) <= stats["fallbacks"] + num_unreported
            else:
                assert num_unreported == request.num_tokens, "nothing is reported, and the answer says so"


def other_requests(url: str) -> list[httpx.Response]:
    """Those which go by way of other hooks: a batch, /v1/responses, a look at the counters."""
    batch = TRAFFIC[0].body() | {"input_ids": [thinking_prompt(43), thinking_prompt(44)]}
    batch["sampling_params"] |= {"max_new_tokens": 3}
    response = {"model": "led-embedded", "input": "1+1", "max_output_tokens": 3, "metadata": {"led": '{"depth": 2}'}}
    with httpx.Client(base_url=url, timeout=100) as http:
        return [
            http.post("/generate", json=batch),
            http.post("/v1/responses", json=response),
            http.get("/led/info"),
        ]


@pytest.mark.parametrize(
    ("target", "when"), [*product(fault_plugin.HOOKS, ("first", "last")), *product(fault_plugin.INNER, ("first",))]
)
def test_a_fault_in_a_hook(
    target: str, when: str, faulty: Server, switch: Path, client: Client, alone: tuple[Reply, Reply]
) -> None:
    """The engine's requests do not notice, LED's answers say so, and when it is over LED is as before."""
    before = num_faults(client)
    try:
        switch.write_text(json.dumps({"target": target, "when": when}))
        check_answers(faulty.url, alone[1].output_ids)
        for answer in other_requests(faulty.url):
            if answer.status_code != 200:
                legal = (FAILED, 400) if answer.url.path == "/v1/responses" else (FAILED,)
                assert answer.status_code in legal and "LED" in answer.text, answer.text
    finally:
        switch.write_text("{}")
    assert num_faults(client) > before, "no request of this test came by"
    reference = check_bystanders(client, alone)
    assert "unreported" not in reference.meta["led_stats"]


def test_the_first_fault_of_each_hook_is_in_the_log_with_its_traceback(faulty: Server) -> None:
    log = faulty.log.read_text(errors="replace")
    for target in fault_plugin.HOOKS:
        assert f"ArithmeticError: forced in {target}" in log


def test_a_full_disk_for_the_log(faulty: Server, client: Client, alone: tuple[Reply, Reply]) -> None:
    """From now on no byte more of the log can be written: the server answers as before, and writes again afterwards."""
    processes = [psutil.Process(faulty.process.pid), *psutil.Process(faulty.process.pid).children(recursive=True)]
    size = faulty.log.stat().st_size
    for process in processes:
        process.rlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        for _ in range(3):
            reference, off = client.together([REFERENCE, OFF])
            assert reference.output_ids == alone[0].output_ids
            assert off.output_ids == alone[1].output_ids
        assert faulty.log.stat().st_size == size, "the limit was none"
    finally:
        for process in processes:
            process.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    client.generate(OFF)
    assert faulty.process.poll() is None
    assert faulty.log.stat().st_size > size


def test_the_killed_scheduler(faulty: Server) -> None:
    """The whole server exits with an error, promptly, and says which process died. The last test of this server."""
    children = kill_scheduler(faulty)
    try:
        status = faulty.process.wait(30)
    except subprocess.TimeoutExpired:
        pytest.fail(f"the server runs on without a scheduler: {faulty.end_of_log()}")
    assert status != 0
    assert "crashed with exit code -9" in faulty.end_of_log()
    _, alive = psutil.wait_procs(children, timeout=30)  # they follow their parent, each when it notices
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
