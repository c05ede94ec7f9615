"""Traces over the API, streamed, from the command line and as a file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from led_sglang import trace
from tests.server.api import joined
from tests.server.servers import Server

QUESTION = "What is 17 + 5 * 3?"
PROMPT = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think>\n"
KEYS = ("think", "explored", "depth", "confidence", "entropy", "logprob", "exploit", "explore", "depth_entropy")


def generate(server: Server, stream: bool, seed: int = 5, **led: Any) -> list[dict[str, Any]]:
    """Every answer of /generate: one, or one for each chunk."""
    sampling = {
        "temperature": 0.9,
        "max_new_tokens": 120,
        "sampling_seed": seed,
        "custom_params": {"led": {"trace": True, **led}},
    }
    body = {"text": PROMPT, "sampling_params": sampling, "stream": stream}
    answer = httpx.post(f"{server.url}/generate", json=body, timeout=120)
    answer.raise_for_status()
    if not stream:
        return [answer.json()]
    lines = [line for line in answer.text.split("\n") if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.fixture(scope="module", autouse=True)
def _warm(embedded_server: Server) -> None:
    """A cached prompt and a computed one differ in their last bits; the tests below compare to the bit."""
    generate(embedded_server, stream=False)


def events(server: Server, side: str = "led", **more: Any) -> list[dict[str, Any]]:
    request = {
        "messages": [{"role": "user", "content": QUESTION}],
        "sampling": {"temperature": 0.9, "max_new_tokens": 120},
        "seed": 5,
        "side": side,
        **more,
    }
    return list(trace.stream(server.url, request))


def test_the_pieces_of_a_streamed_trace_are_the_whole(embedded_server: Server) -> None:
    whole = generate(embedded_server, stream=False)[0]
    chunks = generate(embedded_server, stream=True)
    assert len(chunks) > 5
    [answer] = joined(chunks)
    for key in KEYS:
        assert answer["meta_info"][f"led_{key}"] == whole["meta_info"][f"led_{key}"], key
    assert answer["output_ids"] == whole["output_ids"]


def test_one_event_per_token_carries_that_tokens_trace(embedded_server: Server) -> None:
    meta = generate(embedded_server, stream=False)[0]
    *tokens, end = events(embedded_server)
    assert [token["id"] for token in tokens] == meta["output_ids"]
    for key in KEYS:
        assert [token[key] for token in tokens] == meta["meta_info"][f"led_{key}"], key
    candidates = [[c[0] for c in t["candidates"]] if t["candidates"] else None for t in tokens]
    assert candidates == meta["meta_info"]["led_candidates"]
    text = "".join(token["text"] for token in tokens if not token.get("special"))
    assert text == meta["text"]
    assert end["stats"] == meta["meta_info"]["led_stats"] and end["params"]["depth"] == 8


def test_the_largest_depth_entropy_is_the_traced_depth(embedded_server: Server) -> None:
    tokens = [e for e in events(embedded_server) if e.get("depth_entropy")]
    assert tokens
    for token in tokens:
        assert len(token["depth_entropy"]) == 8
        assert max(token["depth_entropy"]) == token["entropy"]
        assert token["depth_entropy"].index(token["entropy"]) + 1 == token["depth"]


def test_plain_agrees_until_exploration_takes_another_turn(embedded_server: Server) -> None:
    def text(side: str, seed: int) -> list[dict[str, Any]]:
        return [event for event in events(embedded_server, side, seed=seed) if "id" in event]

    for seed in (1, 2):
        led, plain = text("led", seed), text("plain", seed)
        pairs = zip(led, plain, strict=False)
        parted = next((i for i, (a, b) in enumerate(pairs) if a["id"] != b["id"]), None)
        if parted is None:
            assert [t["id"] for t in led] == [t["id"] for t in plain]
        else:
            assert led[parted]["explored"] and led[parted]["depth"] > 1


def test_samples_are_those_of_the_following_seeds(embedded_server: Server) -> None:
    both = events(embedded_server, n=2)
    second = [event["id"] for event in events(embedded_server, seed=6) if "id" in event]
    assert [event["id"] for event in both if event["i"] == 1 and "id" in event] == second
    assert len([event for event in both if "end" in event]) == 2


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"prompt": "x", "n": 9}, "n must be an integer in [1, 8]"),
        ({"prompt": "x", "messages": []}, "exactly one"),
        ({}, "exactly one"),
        ({"prompt": "x", "side": "both"}, "side must be one of led, plain"),
        ({"prompt": "x", "seed": -1}, "seed must be"),
        ({"prompt": "x", "led": {"depth": 99}}, "custom_params.led.depth must be an integer in [1, 12]"),
        ({"prompt": "x", "led": {"colour": 1}}, "colour"),
        ({"prompt": "x", "sampling": {"temperature": -1}}, "temperature"),
        ({"prompt": "x", "sampling": {"custom_params": {}}}, "without"),
        ({"prompt": "x", "sampling": {"warmth": 1}}, "warmth"),
        ({"prompt": "x", "extra": 1}, "keys among"),
        ({"prompt": ""}, "cannot be empty"),
    ],
)
def test_refusals_are_400_and_name_the_fault(embedded_server: Server, body: dict[str, Any], named: str) -> None:
    answer = httpx.post(f"{embedded_server.url}/led/stream", json=body, timeout=60)
    assert answer.status_code == 400 and named in answer.json()["error"]["message"], answer.text


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "led_sglang.trace", *arguments], capture_output=True, text=True, timeout=120
    )


def test_the_command_prints_the_answer_and_writes_a_file(embedded_server: Server, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    run = command(QUESTION, "--url", embedded_server.url, "--seed", "5", "--candidates", "--html", str(page))
    assert run.returncode == 0, run.stderr
    assert "</think>" in run.stdout and "tokens/s" in run.stdout and "explored" in run.stdout
    text = page.read_text()
    assert QUESTION in text and "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "src=" not in text


def test_the_command_says_what_is_wrong(embedded_server: Server) -> None:
    gone = command(QUESTION, "--url", "http://127.0.0.1:9")
    assert gone.returncode == 1 and "no answer from" in gone.stderr and "Traceback" not in gone.stderr
    deep = command(QUESTION, "--url", embedded_server.url, "--depth", "99")
    assert deep.returncode == 1 and "[1, 12]" in deep.stderr
