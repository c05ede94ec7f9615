"""`--enable-deterministic-inference`: the same seed gives the same bits, whatever else is in the batch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from led_sglang.config.methods import METHOD_TABLE
from led_sglang.testing import Reply
from tests.server.clients import Client, Oracle, Request, check, sharp_server, thinking_prompt, words
from tests.server.recompute import Query

pytestmark = pytest.mark.server


METHODS = tuple(name for name in METHOD_TABLE if name != "none")
SETTINGS: tuple[Any, ...] = (
    {"trace": True},
    {"trace": True, "depth": 3, "top_k": 5, "phase": "all"},
    False,  # the engine's own seeded sampler
    {"method": "none"},
    *({"method": method} for method in METHODS[1:]),
)


@pytest.fixture(scope="module")
def client(qwen3_folder: Path, logs: Path) -> Iterator[Client]:
    arguments = ("--enable-deterministic-inference", "--max-total-tokens", "8192", "--led-methods", ",".join(METHODS))
    with sharp_server(qwen3_folder, logs / "deterministic.log", *arguments) as server:
        client = Client(server.url)
        assert client.get("/server_info")["enable_deterministic_inference"] is True
        yield client


def requests(seed: int | None, temperature: float) -> list[Request]:
    """One of every kind, each with a prompt of another length; half of the prompts do not think."""
    return [
        Request(
            thinking_prompt(200 + i, 8 + 5 * i) if i % 3 else words(200 + i, 8 + 5 * i),
            Query(temperature),
            12 + i % 3,
            seed,
            return_logprob=True,
            led=led,
        )
        for i, led in enumerate(SETTINGS)
    ]


def reported(reply: Reply) -> Any:
    """Token ids and the engine's log-probabilities, bit for bit."""
    return reply.output_ids, reply.meta["output_token_logprobs"]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_seed_gives_the_same_bits_alone_and_in_a_crowd(temperature: float, client: Client) -> None:
    queries = requests(11, temperature)
    crowd: Any = [Request(thinking_prompt(300 + i), Query(1.0), 20, seed=i, led={}) for i in range(12)]
    alone = [reported(client.generate(request)) for request in queries]
    together = [reported(reply) for reply in client.together([*queries, *crowd])[: len(queries)]]
    assert together == alone
    if temperature:
        others = [reported(client.generate(request)) for request in requests(12, temperature)]
        assert sum(one != other for one, other in zip(alone, others, strict=True)) >= len(queries) - 2


def test_leds_requests_do_not_depend_on_what_is_filtered_beside_them(client: Client) -> None:
    """Stock SGLang's seeded sampler draws by rank instead of by token as soon as one row of the batch has a filter."""
    is_led = [led not in (False, {"method": "none"}) for led in SETTINGS]
    queries = [request for request, ours in zip(requests(13, 0.9), is_led, strict=True) if ours]
    beside: Any = [Request(thinking_prompt(320 + i), Query(0.0), 30, seed=i) for i in range(4)]
    beside += [Request(words(330 + i, 20), Query(1.0), 30, seed=i, led=False, filters={"top_k": 5}) for i in range(4)]
    alone = [reported(client.generate(request)) for request in queries]
    together = [reported(reply) for reply in client.together([*queries, *beside])[: len(queries)]]
    assert together == alone


def test_no_seed_is_sglangs_default_seed_for_everyone(client: Client) -> None:
    unseeded, default = ([reported(client.generate(request)) for request in requests(seed, 0.7)] for seed in (None, 42))
    assert unseeded == default


def test_led_is_led_there_too(client: Client, oracle: Oracle) -> None:
    replies = client.together(
        [Request(thinking_prompt(400 + i), Query(0.7), 24, seed=i, led={"trace": True}) for i in range(6)]
    )
    check(oracle, *replies)
    assert any(any(reply.meta["led_explored"]) for reply in replies)
