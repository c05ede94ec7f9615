"""SGLang's own endpoint: streaming, batches, the trace and its sums."""

import json
from typing import Any

import httpx
import pytest

from tests.server.talking import (
    DEFAULTS,
    GENERATE,
    TRACE_KEYS,
    body,
    check_trace,
    events,
    generate,
    thinking_prompt,
)

pytestmark = pytest.mark.server
TRACE = {"trace": True}


@pytest.mark.parametrize("depth", [1, 8, 12])
def test_trace(http: httpx.Client, depth: int) -> None:
    answer = generate(http, {"trace": True, "depth": depth, "top_k": 5}, sampling={"sampling_seed": 1})
    check_trace(answer["meta_info"])
    assert len(answer["output_ids"]) == answer["meta_info"]["completion_tokens"]
    for token, candidates in zip(answer["output_ids"], answer["meta_info"]["led_candidates"], strict=True):
        assert candidates is None or token in candidates


def test_the_engines_tokens_have_no_led_values(http: httpx.Client) -> None:
    meta = generate(http, TRACE, text="No thinking here: 1 + 1 =", sampling={"max_new_tokens": 8})["meta_info"]
    assert meta["led_think"][0] is False
    check_trace(meta)
    everywhere = generate(http, {**TRACE, "phase": "all"}, text="Nor here:", sampling={"max_new_tokens": 8})[
        "meta_info"
    ]
    assert everywhere["led_stats"]["led_tokens"] == 8
    check_trace(everywhere)


def test_without_a_trace_there_is_none(http: httpx.Client) -> None:
    meta = generate(http, {})["meta_info"]
    assert meta["led_params"] == DEFAULTS
    assert set(meta["led_stats"]) == {"led_tokens", "thinking_tokens", "explored_tokens", "mean_depth", "fallbacks"}
    assert not set(TRACE_KEYS) & set(meta)


def test_led_off_is_said_and_nothing_else(http: httpx.Client) -> None:
    meta = generate(http, False)["meta_info"]
    assert meta["led_params"] == {"method": "none"}
    assert not ({"led_stats"} | set(TRACE_KEYS)) & set(meta)


def test_the_trace_grows_with_the_stream(http: httpx.Client) -> None:
    request = body(GENERATE, TRACE, 24, stream=True)
    request["sampling_params"]["sampling_seed"] = 4
    with http.stream("POST", GENERATE, json=request) as answer:
        assert answer.status_code == 200
        chunks = list(events(answer.iter_lines()))
    assert len(chunks) > 5
    for chunk in chunks:
        check_trace(chunk["meta_info"])
    whole = generate(http, TRACE, sampling={"max_new_tokens": 24, "sampling_seed": 4})
    assert chunks[-1]["meta_info"]["led_candidates"] == whole["meta_info"]["led_candidates"]
    assert chunks[-1]["text"] == whole["text"]


def test_a_batch_has_parameters_of_its_own(http: httpx.Client) -> None:
    leds: list[Any] = [TRACE, False, {"trace": True, "depth": 2, "top_k": 3}, None]
    sampling = [
        {"temperature": 0.6, "max_new_tokens": 6 + i, **({} if led is None else {"custom_params": {"led": led}})}
        for i, led in enumerate(leds)
    ]
    answer = http.post(GENERATE, json={"text": [thinking_prompt()] * 4, "sampling_params": sampling})
    assert answer.status_code == 200, answer.text
    metas = [one["meta_info"] for one in answer.json()]
    assert [meta["completion_tokens"] for meta in metas] == [6, 7, 8, 9]
    assert metas[1]["led_params"] == {"method": "none"}
    assert metas[3]["led_params"] == DEFAULTS
    assert (metas[2]["led_params"]["depth"], metas[2]["led_params"]["top_k"]) == (2, 3)
    check_trace(metas[0])
    check_trace(metas[2])


def test_ids_in_and_n_samples(http: httpx.Client) -> None:
    request = {
        "input_ids": [5, 6, 7, 8],
        "sampling_params": {"n": 3, "max_new_tokens": 6, "custom_params": {"led": {"phase": "all", "trace": True}}},
    }
    answers = http.post(GENERATE, json=request).json()
    assert len(answers) == 3
    for one in answers:
        check_trace(one["meta_info"])
    assert len({json.dumps(one["meta_info"]["led_logprob"]) for one in answers}) > 1


@pytest.mark.parametrize("prompt", ["What is 7 + 5 * 2?", "Hello"])
def test_chat_tells_masks_that_hold_the_token(http: httpx.Client, prompt: str) -> None:
    request = {
        "model": "m", "messages": [{"role": "user", "content": prompt}],
        "temperature": 0.9, "top_k": 8, "max_tokens": 200,
        "logprobs": True, "return_meta_info": True, "return_sampling_mask": True, "custom_params": {"led": TRACE},
    }  # fmt: skip
    answer = http.post("/v1/chat/completions", json=request)
    assert answer.status_code == 200, answer.text
    meta = answer.json()["choices"][0]["meta_info"]
    tokens = [token for _, token, _ in meta["output_token_logprobs"]]
    masks, logprobs = meta["output_token_sampling_mask"], meta["output_token_sampling_logprobs"]
    assert all(token in mask for token, mask in zip(tokens, masks, strict=True))
    assert None in meta["led_logprob"] and any(meta["led_explored"]), "the thought, and the answer behind it"
    for ours, told in zip(meta["led_logprob"], logprobs, strict=True):
        assert ours is None or told == pytest.approx(ours, abs=1e-5)


def test_logprobs_agree_with_the_trace(http: httpx.Client) -> None:
    """At depth 1 without a coin to toss, p_LED is the final top-k renormalised: no less than the engine's p."""
    answer = generate(http, {"trace": True, "depth": 1}, return_logprob=True, top_logprobs_num=8)
    meta = answer["meta_info"]
    engine = [logprob for logprob, _, _ in meta["output_token_logprobs"]]
    assert [token for _, token, _ in meta["output_token_logprobs"]] == answer["output_ids"]
    for ours, theirs in zip(meta["led_logprob"], engine, strict=True):
        assert ours is None or ours >= theirs - 1e-4
