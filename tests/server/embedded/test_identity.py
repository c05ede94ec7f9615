"""LED off is stock SGLang, bit for bit: same tokens, same logprobs, alone and beside rows that explore.

Sampling has no seed in SGLang outside of deterministic inference, so sampled rows are compared by what their tokens are
drawn from: the engine's logprobs, exactly equal along one and the same continuation.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.server.servers import Server

pytestmark = [pytest.mark.server, pytest.mark.quick]

QUESTIONS = ("What is 17 + 5 * 3?", "What is 2 * 9 - 4?", "What is (8 - 3) * 7?", "Hello", "What is 40 - 12 - 9?")
PROMPTS = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n<think>\n" for text in QUESTIONS]
PROMPTS += ["No thinking: 1 + 1 =", "a"]
LED_OFF = {"custom_params": {"led": False}}
NUM_TOKENS = 48


@pytest.fixture(scope="module")
def ours(embedded_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=embedded_server.url, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def stock(stock_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stock_server.url, timeout=120) as client:
        yield client


def send(client: httpx.Client, prompts: list[str], sampling: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the engine says of each prompt, from a cold cache: ids, text and every logprob."""
    settings = [{"temperature": 0, "max_new_tokens": NUM_TOKENS, "ignore_eos": True, **more} for more in sampling]
    assert client.post("/flush_cache").status_code == 200
    request = {"text": prompts, "sampling_params": settings, "return_logprob": True, "top_logprobs_num": 4}
    answer = client.post("/generate", json=request)
    assert answer.status_code == 200, answer.text
    return answer.json()


def said(answer: dict[str, Any]) -> dict[str, Any]:
    meta = answer["meta_info"]
    kept = ("output_token_logprobs", "output_top_logprobs", "input_token_logprobs", "finish_reason")
    return {"text": answer["text"], "ids": answer["output_ids"], **{key: meta[key] for key in kept}}


@pytest.fixture(scope="module")
def stock_alone(stock: httpx.Client) -> list[dict[str, Any]]:
    return [said(send(stock, [prompt], [{}])[0]) for prompt in PROMPTS]


def test_the_stock_server_has_no_led(stock: httpx.Client) -> None:
    assert stock.get("/led/info").status_code == 404
    meta = send(stock, PROMPTS[:1], [{"custom_params": {"led": {"trace": True}}}])[0]["meta_info"]
    assert not [key for key in meta if key.startswith("led")]


def test_alone(ours: httpx.Client, stock_alone: list[dict[str, Any]]) -> None:
    for prompt, expected in zip(PROMPTS, stock_alone, strict=True):
        answer = send(ours, [prompt], [LED_OFF])[0]
        assert answer["meta_info"]["led_params"] == {"method": "none"}
        assert said(answer) == expected


def test_outside_the_thinking_phase_led_rows_are_the_engines(
    ours: httpx.Client, stock_alone: list[dict[str, Any]]
) -> None:
    """A prompt without a thought is answered by the engine for as long as the model opens none."""
    for prompt, expected in list(zip(PROMPTS, stock_alone, strict=True))[len(QUESTIONS) :]:
        answer = send(ours, [prompt], [{"custom_params": {"led": {"trace": True}}}])[0]
        thinks = answer["meta_info"]["led_think"]
        num_plain = thinks.index(True) if True in thinks else NUM_TOKENS
        assert num_plain > 0
        assert said(answer)["output_token_logprobs"][:num_plain] == expected["output_token_logprobs"][:num_plain]


@pytest.mark.parametrize("led", [True, {"phase": "all", "trace": True}, {"depth": 12, "top_k": 2}])
def test_in_a_batch_with_rows_that_explore(
    ours: httpx.Client, stock: httpx.Client, stock_alone: list[dict[str, Any]], led: Any
) -> None:
    """Row for row as in a stock batch of the same size: rows that explore stand between those that do not."""
    exploring = {"temperature": 1.0, "custom_params": {"led": led}}
    mixed = send(ours, [p for p in PROMPTS for _ in range(2)], [LED_OFF, exploring] * len(PROMPTS))
    plain = send(stock, [p for p in PROMPTS for _ in range(2)], [{}] * (2 * len(PROMPTS)))
    assert any(answer["meta_info"]["led_stats"]["explored_tokens"] for answer in mixed[1::2])
    for i, (answer, expected) in enumerate(zip(mixed[::2], plain[::2], strict=True)):
        assert answer["output_ids"] == expected["output_ids"] == stock_alone[i]["ids"]
        assert_close(said(answer), said(expected))


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal but for the last bits: a CPU's matrix product rounds by the number of rows that happen to be in a step."""
    for key in ("output_token_logprobs", "output_top_logprobs"):
        numbers = zip(flat(found[key]), flat(expected[key]), strict=True)
        assert all(a == b or math.isclose(a, b, rel_tol=0, abs_tol=2e-4) for a, b in numbers)


def flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from flat(item)
    elif value is not None:
        yield value


def test_sampled_rows_draw_from_the_same_distribution(ours: httpx.Client, stock: httpx.Client) -> None:
    """Every id of a sampled continuation is scored by both servers: the same logprobs to the last bit."""
    sampled = send(ours, PROMPTS[:2], [{"temperature": 1.0, **LED_OFF}] * 2)
    for prompt, answer in zip(PROMPTS, sampled, strict=False):
        ids = ours.post("/tokenize", json={"prompt": prompt}).json()["tokens"] + answer["output_ids"]
        scored = []
        for client in (ours, stock):
            assert client.post("/flush_cache").status_code == 200
            request = {
                "input_ids": ids,
                "sampling_params": {"temperature": 1.0, "max_new_tokens": 1, **(LED_OFF if client is ours else {})},
                "return_logprob": True,
                "logprob_start_len": 0,
            }
            scored.append(client.post("/generate", json=request).json()["meta_info"]["input_token_logprobs"])
        assert scored[0] == scored[1]


def test_chat_and_completions_are_the_same_bytes(ours: httpx.Client, stock: httpx.Client) -> None:
    def reported(client: httpx.Client, path: str, prompt: dict[str, Any]) -> Any:
        request = {"model": "m", "temperature": 0, "max_tokens": 24, **prompt}
        if client is ours:
            request["custom_params"] = {"led": False}
        document = client.post(path, json=request).json()
        return json.dumps([document["choices"], document["usage"]])

    chat = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "logprobs": True, "top_logprobs": 3}
    text = {"prompt": PROMPTS[0], "logprobs": 3}
    for path, prompt in (("/v1/chat/completions", chat), ("/v1/completions", text)):
        for client in (ours, stock):
            assert client.post("/flush_cache").status_code == 200
        assert reported(ours, path, prompt) == reported(stock, path, prompt)


def listening(server: Server) -> list[str]:
    """What the processes of a server listen on: its own port by name, others by address."""
    processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    found = []
    for process in processes:
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                is_own = connection.laddr.port == server.port
                found.append(f"{connection.laddr.ip}:{'port' if is_own else 'any'}")
    return sorted(found)


def test_led_opens_no_port_of_its_own(embedded_server: Server, stock_server: Server) -> None:
    assert listening(embedded_server) == listening(stock_server)
    assert "127.0.0.1:port" in listening(embedded_server)
