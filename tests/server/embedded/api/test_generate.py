"""SGLang's own endpoint: streaming, batches, the trace and its sums."""

import json
from typing import Any

import httpx
import pytest

from led_sglang.testing import check_trace
from tests.server.api import DEFAULTS, GENERATE, TRACE_KEYS, body, generate, joined, streamed, thinking_prompt

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


STREAMS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "every fourth token": {"stream_interval": 4},
    "samples": {"n": 3},
    "stopped by a token": {"stop_token_ids": [801]},
    "no token": {"max_new_tokens": 0},
}


@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("name", STREAMS)
def test_a_chunk_carries_the_trace_of_its_own_tokens(http: httpx.Client, name: str, prompts: int) -> None:
    """So that they add up to the whole answer's, one entry a token."""
    request = body(GENERATE, TRACE, 24)
    request["sampling_params"] |= {"sampling_seed": 4, **STREAMS[name]}
    if prompts > 1:
        request["text"] = [thinking_prompt(), thinking_prompt("What is 2 + 2?")]
    chunks = streamed(http, request)
    sizes = [len(chunk["meta_info"]["led_think"]) for chunk in chunks]
    assert max(sizes) >= {"every fourth token": 4, "no token": 0}.get(name, 1)
    answers, wholes = joined(chunks), http.post(GENERATE, json=request).json()
    for answer, whole in zip(answers, wholes if isinstance(wholes, list) else [wholes], strict=True):
        check_trace(answer["meta_info"])
        assert answer["output_ids"] == whole["output_ids"] and answer["text"] == whole["text"]
        assert answer["meta_info"]["led_candidates"] == whole["meta_info"]["led_candidates"]
        assert answer["meta_info"]["led_stats"] == whole["meta_info"]["led_stats"]


def test_tokens_that_are_held_back_for_a_stop_string_keep_their_entries(http: httpx.Client) -> None:
    text = generate(http, TRACE, sampling={"sampling_seed": 4})["text"]
    request = body(GENERATE, TRACE, 64)
    request["sampling_params"] |= {"sampling_seed": 4, "stop": [text[10:16], text[3:6] + "no such text"]}
    chunks = streamed(http, request)
    assert chunks[-1]["meta_info"]["finish_reason"]["matched"] == text[10:16]
    assert max(len(chunk["meta_info"]["led_think"]) for chunk in chunks) > 1, "nothing was held back"
    [answer] = joined(chunks)
    check_trace(answer["meta_info"])
    assert text.startswith(answer["text"])


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
def test_chat_reports_masks_that_hold_the_token(http: httpx.Client, prompt: str) -> None:
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
    if prompt != "Hello":  # which the model knows nothing of: one thought of nine does not end within 200 tokens
        assert None in meta["led_logprob"] and any(meta["led_explored"]), "the thought, and the answer behind it"
    for ours, reported in zip(meta["led_logprob"], logprobs, strict=True):
        assert ours is None or reported == pytest.approx(ours, abs=1e-5)


def test_logprobs_agree_with_the_trace(http: httpx.Client) -> None:
    """At depth 1 without a coin to toss, p_LED is the final top-k renormalised: no less than the engine's p."""
    answer = generate(http, {"trace": True, "depth": 1}, return_logprob=True, top_logprobs_num=8)
    meta = answer["meta_info"]
    engine = [logprob for logprob, _, _ in meta["output_token_logprobs"]]
    assert [token for _, token, _ in meta["output_token_logprobs"]] == answer["output_ids"]
    for ours, theirs in zip(meta["led_logprob"], engine, strict=True):
        assert ours is None or ours >= theirs - 1e-4
