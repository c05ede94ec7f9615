"""What a server that speculates does beside single answers, with LED and without, and what stock SGLang would do."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from led_sglang.testing import check_trace
from tests.server.api import joined, streamed
from tests.server.checkpoints import CLOSE_ID, OPEN_ID
from tests.server.clients import Client, Request
from tests.server.recompute import Query
from tests.server.servers import Server, install_plugin
from tests.server.speculation.cases import CASES, FLICKER, prompts
from tests.server.speculation.conftest import Makers

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]
PROMPTS = prompts(12)
DRAFTS = "LED_TEST_DRAFTS"  # the file that the plugin below writes
PLAIN = [
    Request(PROMPTS[i], Query(temperature=temperature), 40, None, led={"method": "none"}, ignore_eos=False)
    for i in range(4)
    for temperature in (0.0, 0.9)
]
# A second plugin writes down every draft that is verified: what LED does must not reach the draft model.
PLUGIN = f"""
import os
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
def note(verify_input, *args, **kwargs):
    with open(os.environ["{DRAFTS}"], "a") as file:
        file.write(str(verify_input.draft_token.tolist()) + "\\\\n")
HookRegistry.register("sglang.srt.speculative.eagle_utils.eagle_sample", note, HookType.BEFORE)
"""


@pytest.fixture(scope="module", params=["STANDALONE tree", "EAGLE3 chain"])
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def environment_of(folder: Path) -> dict[str, str]:
    return install_plugin(folder / "plugin", register=PLUGIN.strip()) | {DRAFTS: str(folder / "drafts")}


def plain_answers(client: Client, drafts: Path) -> list[Any]:
    """One after another; text, verifications and drafts of each."""
    found = []
    for request in PLAIN:
        drafts.write_text("")
        reply = client.generate(request)
        found.append((reply.output_ids, reply.meta["spec_verify_ct"], drafts.read_text()))
    return found


@pytest.fixture(scope="module")
def stock(case: str, makers: Makers, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Of a server without our hooks."""
    folder = tmp_path_factory.mktemp("stock")
    arguments = ("--led", "disabled", "--random-seed", "3", *makers.speculation(CASES[case]))
    with Server(*arguments, log=logs / f"stock {case}.log", environment=environment_of(folder)) as server:
        return plain_answers(Client(server.url), folder / "drafts")


@pytest.fixture(scope="module")
def folder(case: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("led")


@pytest.fixture(scope="module")
def client(case: str, stock: list[Any], folder: Path, makers: Makers, logs: Path) -> Iterator[Client]:
    arguments = ("--random-seed", "3", *makers.speculation(CASES[case]))
    with Server(*arguments, log=logs / f"led {case}.log", environment=environment_of(folder)) as server:
        yield Client(server.url)


def test_plain_requests_are_those_of_a_stock_server(client: Client, stock: list[Any], folder: Path) -> None:
    """Tokens, number of verifications and every draft, sampled ones with the server's own coins. The first test."""
    assert plain_answers(client, folder / "drafts") == stock
    assert any(len(ids) > 1.3 * num_verified for ids, num_verified, _ in stock), "no draft was accepted"


def test_streams_and_samples(client: Client) -> None:
    request = Request(PROMPTS[0], Query(temperature=1.0), 60, 5, ignore_eos=False, return_logprob=True)
    whole = client.generate(request)
    check_trace(whole.meta)
    with httpx.Client(base_url=client.url, timeout=200) as http:
        chunks = list(streamed(http, request.body()))
    [stream] = joined(chunks, is_incremental=False)
    assert stream["output_ids"] == whole.output_ids
    for name in ("led_stats", "led_depth", "led_explored", "led_candidates"):
        assert stream["meta_info"][name] == whole.meta[name], name
    assert max(len(b["output_ids"]) - len(a["output_ids"]) for a, b in pairwise(chunks)) > 1, "no run of several tokens"
    samples = client.samples(request, 3)
    assert samples[0].output_ids == whole.output_ids
    assert len({tuple(sample.output_ids) for sample in samples}) > 1
    for sample in samples:
        check_trace(sample.meta)


def test_the_engines_logprobs_are_those_of_the_tokens(client: Client) -> None:
    request = Request(PROMPTS[1], Query(temperature=1.0), 60, 5, ignore_eos=False, return_logprob=True)
    reply = client.generate(request)
    assert [token for _, token, _ in reply.meta["output_token_logprobs"]] == reply.output_ids
    decided = [
        row for row in zip(reply.meta["output_token_logprobs"], reply.meta["led_confidence"], strict=True) if row[1]
    ]
    assert decided and all(logprob <= math.log(confidence) + 1e-3 for (logprob, _, _), confidence in decided)


def test_stops_and_lengths_inside_a_run(client: Client) -> None:
    """What is reported has as many entries as tokens, whatever the run that was accepted."""
    for length in range(1, 9):
        reply = client.generate(Request(PROMPTS[2], Query(temperature=0.0), length, None))
        assert len(reply.output_ids) == length
        check_trace(reply.meta)
    full = client.generate(Request(PROMPTS[2], Query(temperature=0.0), 40, None, ignore_eos=False))
    for stop in {*full.output_ids[4:20:3]}:
        sampling = {"stop_token_ids": [stop]}
        request = Request(PROMPTS[2], Query(temperature=0.0), 40, None, ignore_eos=False, sampling=sampling)
        reply = client.generate(request)
        assert reply.output_ids == full.output_ids[: full.output_ids.index(stop) + 1]
        check_trace(reply.meta)


def test_a_grammar_holds_in_the_answer(client: Client) -> None:
    request = Request(
        [*PROMPTS[3], CLOSE_ID], Query(temperature=1.0, phase="all"), 24, 7, ignore_eos=False,
        sampling={"regex": "(12|345) (yes|no)"},
    )  # fmt: skip
    reply = client.generate(request)
    assert reply.document["text"].strip() in {f"{n} {word}" for n in (12, 345) for word in ("yes", "no")}
    check_trace(reply.meta)


def test_counters_are_what_clients_saw(client: Client) -> None:
    """Mixed traffic: LED traced and not, plain, aborted in mid-stream, stopped; phases that change all the time."""
    before = client.get("/led/info")["counters"]
    queries = [Query(temperature=1.0), Query(temperature=1.0, logit_bias=FLICKER), Query(temperature=0.0, depth=3)]
    requests = [
        Request(PROMPTS[i % 12], queries[i % 3], 30 + i % 5, i, ignore_eos=i % 2 == 0, led=None if i % 4 else False)
        for i in range(36)
    ]
    replies = client.together(requests)
    for reply in replies:
        if reply.request.led is None:
            check_trace(reply.meta)
    after = client.get("/led/info")["counters"]
    ours = [reply.meta["led_stats"] for reply in replies if reply.request.led is None]
    for key in ("led_tokens", "thinking_tokens", "explored_tokens", "fallbacks"):
        assert after[key] - before[key] == sum(stats[key] for stats in ours), key
    assert sum(stats["explored_tokens"] for stats in ours) > 50 and after["step_failures"] == 0


def test_aborts_in_mid_verification(client: Client) -> None:
    """Clients that leave do not disturb those that stay."""
    staying = Request(PROMPTS[5], Query(temperature=1.0), 80, 11)
    alone = client.generate(staying)
    body = replace(staying, num_tokens=400).body() | {"stream": True}

    def leave(_: int) -> None:
        with httpx.stream("POST", f"{client.url}/generate", json=body, timeout=100) as stream:
            for _line, _number in zip(stream.iter_lines(), range(6), strict=False):
                pass

    with ThreadPoolExecutor(5) as pool:
        leaving = [pool.submit(leave, i) for i in range(4)]
        stayed = pool.submit(client.generate, staying).result()
        for future in leaving:
            future.result()
    assert len(stayed.output_ids) == len(alone.output_ids) == 80
    check_trace(stayed.meta)
    assert client.get("/led/info")["counters"]["step_failures"] == 0


def test_thoughts_that_reopen(client: Client) -> None:
    reply = client.generate(Request(PROMPTS[6], Query(temperature=1.0, logit_bias=FLICKER), 60, 4))
    check_trace(reply.meta)
    expected, thinking = [], True
    for token in reply.output_ids:
        expected.append(thinking)
        thinking = token == OPEN_ID or (thinking and token != CLOSE_ID)
    assert reply.meta["led_think"] == expected and len(set(expected)) == 2
