"""What a request's noise hangs on: its own seed, or one drawn for it, or, where the engine is greedy, its prompt."""

import copy
from array import array
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sglang.srt.sampling.sampling_params import SamplingParams

from led_sglang.config.checks import LedParamError
from led_sglang.config.request import parse_request
from led_sglang.config.server import ENV_CONFIG, ServerConfig, export_config
from led_sglang.integration.http import requests, responses
from led_sglang.integration.http.requests import DETERMINISTIC_SEED, resolve_batch, resolve_one, verify
from led_sglang.wire import RESOLVED_KEY

GREEDY: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.0, "top_p": 0.5},
    {"temperature": 1e-9},
    {"top_k": 1},
]


@pytest.fixture(autouse=True)
def _configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_CONFIG, "")
    export_config(ServerConfig(num_layers=12, open_ids=(5,), close_ids=(6,)))


@pytest.mark.parametrize("value", [1e39, 3e38, float("inf")])
def test_a_bias_that_would_take_the_scheduler_down_is_refused(value: float) -> None:
    """Infinite in float32, or over the temperature: SGLang's draw raises, LED or not."""
    for led in (True, False):
        params = SamplingParams(logit_bias={"15": value}, custom_params={"led": led})
        with pytest.raises(LedParamError, match=r"logit_bias\[15\] must be a number of at most 1e\+30"):
            verify(lambda self, vocab_size: None, params, 100)
    for legal in (-100.0, 100, 1e30, -1e39):
        verify(lambda self, vocab_size: None, SamplingParams(logit_bias={"15": legal}), 100)


def manager(is_deterministic: bool = False) -> Any:
    return SimpleNamespace(
        server_args=SimpleNamespace(enable_deterministic_inference=is_deterministic), rid_to_state={}
    )


def tokenized(ids: Any, embeds: Any = None, **sampling: Any) -> Any:
    """As the tokenizer makes one: its parameters are verified."""
    params = SamplingParams(**sampling)
    verify(lambda *_: None, params, 1 << 20)
    return SimpleNamespace(rid="a", input_ids=ids, input_embeds=embeds, sampling_params=params)


def resolve(request: Any, is_deterministic: bool = False) -> dict[str, Any]:
    resolve_one(manager(is_deterministic), request)
    return dict(request.sampling_params.custom_params[RESOLVED_KEY])


@pytest.mark.parametrize("sampling", GREEDY, ids=str)
def test_a_greedy_prompt_has_a_seed_of_its_own(sampling: dict[str, Any]) -> None:
    ids = [7, 8, 9, 150_000]
    seeds = {resolve(tokenized(kind(ids), **sampling))["seed"] for kind in (list, lambda i: array("q", i), np.array)}
    assert len(seeds) == 1
    assert 0 <= min(seeds) < 1 << 63
    assert not resolve(tokenized(ids, **sampling))["is_seeded"]
    others = [[7, 8, 9], [7, 8, 9, 150_001], [8, 7, 9, 150_000], [0, 7, 8, 9, 150_000], [7 + (8 << 32), 9, 150_000]]
    seeds |= {resolve(tokenized(other, **sampling))["seed"] for other in others}
    assert len(seeds) == 1 + len(others)


def test_the_parameters_do_not_move_the_coin() -> None:
    """Depths can be compared on one prompt: exploit where the other exploits, until the texts part."""
    leds: list[Any] = [{"led": {"depth": 1}}, {"led": {"depth": 8}}, None]
    assert len({resolve(tokenized([1, 2], temperature=0, custom_params=led))["seed"] for led in leds}) == 1


def test_embeddings_are_a_prompt_too() -> None:
    def seed(embeds: list[list[float]]) -> int:
        return int(resolve(tokenized(array("q", [1, 1]), embeds, temperature=0))["seed"])

    assert seed([[0.5, 1.0], [2.0, 3.0]]) == seed([[0.5, 1.0], [2.0, 3.0]]) != seed([[0.5, 1.0], [2.0, 3.5]])
    assert resolve(tokenized(None, [[0.5]], temperature=0))["seed"] != seed([[0.5]])


def test_samples_of_one_greedy_request_keep_their_index() -> None:
    request = tokenized([1, 2], temperature=0, n=3)
    resolved = [resolve(request) for _ in range(3)]
    assert [reported["sample"] for reported in resolved] == [0, 1, 2]
    assert len({reported["seed"] for reported in resolved}) == 1


def test_samples_between_two_servers_have_rooms_of_their_own() -> None:
    """The same on both, though each resolves a seed of its own; one request keeps what the gateway gave it."""

    def rooms(room: int | None, n: int) -> list[Any]:
        shared, found = tokenized([1, 2], temperature=1.0, n=n), []
        for max_new_tokens in (0, *(5 for _ in range(n))) if n > 1 else (5,):
            request = copy.copy(shared)
            if not max_new_tokens:
                request.sampling_params = copy.copy(shared.sampling_params)
                request.sampling_params.max_new_tokens = 0
            request.bootstrap_room = room
            resolve_one(manager(), request)
            found.append(request.bootstrap_room)
        return found

    assert rooms(77, 1) == [77]
    assert rooms(77, 4) == rooms(77, 4)
    assert 77 in rooms(77, 4) and len({*rooms(77, 4), *rooms(78, 4)}) == 10
    assert all(0 <= room < 1 << 63 for room in rooms((1 << 63) - 1, 4))
    assert rooms(None, 3) == [None] * 4


def test_a_batch_has_a_seed_for_each_prompt() -> None:
    batch = [tokenized([i, 2], temperature=0) for i in range(4)]
    resolve_batch(manager(), batch)
    assert len({request.sampling_params.custom_params[RESOLVED_KEY]["seed"] for request in batch}) == 4


def test_a_seed_that_was_named_is_the_seed() -> None:
    for sampling in (*GREEDY, {"temperature": 0.6}):
        reported = resolve(tokenized([1, 2], sampling_seed=5, **sampling))
        assert (reported["seed"], reported["is_seeded"]) == (5, True)


def test_deterministic_inference_keeps_sglangs_seed() -> None:
    for sampling in (*GREEDY, {"temperature": 0.6}):
        reported = resolve(tokenized([1, 2], **sampling), is_deterministic=True)
        assert (reported["seed"], reported["is_seeded"]) == (DETERMINISTIC_SEED, True)


def test_other_requests_are_drawn_one_by_one() -> None:
    assert len({resolve(tokenized([1, 2], temperature=0.6))["seed"] for _ in range(8)}) == 8


def test_a_request_is_parsed_once_on_its_way_to_the_scheduler_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """In SGLang's `verify`; what sends it and what answers it read the result."""
    parsed: list[object] = []

    def parse(value: object, config: ServerConfig) -> Any:
        parsed.append(value)
        return parse_request(value, config)

    monkeypatch.setattr(requests, "parse_request", parse)
    request = tokenized([1, 2], custom_params={"led": {"depth": 3}}, n=2)
    state = SimpleNamespace(output_ids=[])
    server = manager()
    server.rid_to_state["a"] = state
    for sample in (0, 1):
        resolve_one(server, request)
        assert request.sampling_params.custom_params[RESOLVED_KEY]["sample"] == sample
    answer: dict[str, Any] = {"meta_info": {"completion_tokens": 0}}
    responses._report(answer, state)  # type: ignore[arg-type]
    assert answer["meta_info"]["led_params"]["depth"] == 3
    assert parsed == [{"depth": 3}]
