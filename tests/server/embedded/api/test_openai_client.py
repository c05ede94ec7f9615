"""What the openai client can ask of a server with LED on, and gets."""

import json
import re
from typing import Any

import httpx
import jsonschema
import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI

from led_sglang.testing import check_trace
from tests.server.api import DEFAULTS, MODEL, QUESTION, TEXTS, messages, thinking_prompt, without_spaces

pytestmark = pytest.mark.server


def led(value: object, **more: Any) -> dict[str, Any]:
    return {"custom_params": {"led": value}, **more}


def ask(client: OpenAI, value: object = True, **more: Any) -> Any:
    extra = led(value, return_meta_info=True, **more.pop("extra_body", {}))
    settings = {"max_tokens": 96, "temperature": 0.6, "messages": messages(), **more}
    return client.chat.completions.create(model=MODEL, extra_body=extra, **settings)


def test_chat_thinks_then_answers(openai: OpenAI) -> None:
    answer = ask(openai, seed=1)
    content = answer.choices[0].message.content
    assert content.count("</think>") == 1
    assert content.split("</think>")[1].strip()
    assert answer.choices[0].finish_reason == "stop"
    stats = answer.choices[0].meta_info["led_stats"]
    assert 0 < stats["led_tokens"] == stats["thinking_tokens"] < answer.usage.completion_tokens
    assert stats["fallbacks"] == 0


async def test_async_chat_and_completions(async_openai: AsyncOpenAI) -> None:
    chat = await async_openai.chat.completions.create(
        model=MODEL, messages=messages(), max_tokens=8, extra_body=led({})
    )
    assert chat.usage is not None
    assert chat.usage.completion_tokens == 8
    text = await async_openai.completions.create(model=MODEL, prompt=QUESTION, max_tokens=8, extra_body=led({}))
    assert text.usage is not None
    assert text.usage.completion_tokens == 8
    assert text.choices[0].text


def test_completions_continue_a_prompt(openai: OpenAI, http: httpx.Client) -> None:
    before = http.get("/led/info").json()["counters"]["led_tokens"]
    answer = openai.completions.create(
        model=MODEL, prompt=thinking_prompt(), max_tokens=8, temperature=0.6, seed=1, extra_body=led({"phase": "all"})
    )
    assert answer.choices[0].text
    assert http.get("/led/info").json()["counters"]["led_tokens"] == before + 8


def test_streams_say_what_the_whole_answer_says(openai: OpenAI) -> None:
    settings: dict[str, Any] = {"model": MODEL, "max_tokens": 48, "temperature": 0.6, "seed": 7, "extra_body": led({})}
    whole = openai.chat.completions.create(messages=messages(), **settings)
    pieces = openai.chat.completions.create(
        messages=messages(), stream=True, stream_options={"include_usage": True}, **settings
    )
    chunks = list(pieces)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 10
    assert chunks[-1].usage == whole.usage

    whole_text = openai.completions.create(prompt=thinking_prompt(), **settings).choices[0].text
    pieces = openai.completions.create(prompt=thinking_prompt(), stream=True, **settings)
    assert "".join(chunk.choices[0].text for chunk in pieces if chunk.choices) == whole_text
    assert whole_text == text, "the chat template is all that chat adds"


async def test_async_stream(async_openai: AsyncOpenAI) -> None:
    stream = await async_openai.chat.completions.create(
        model=MODEL, messages=messages(), max_tokens=16, stream=True, extra_body=led({"phase": "all"})
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")


def test_four_samples_differ_and_are_reproducible(openai: OpenAI) -> None:
    def texts(seed: int | None) -> list[str]:
        answer = ask(openai, {"phase": "all"}, n=4, seed=seed, temperature=1.5, max_tokens=24)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        return [choice.message.content for choice in answer.choices]

    first = texts(11)
    assert len(set(first)) == 4
    assert texts(11) == first
    assert texts(12) != first
    assert len(set(texts(None))) == 4


def test_without_a_seed_answers_differ(openai: OpenAI) -> None:
    texts = {ask(openai, {}, temperature=1.5, max_tokens=24).choices[0].message.content for _ in range(4)}
    assert len(texts) > 1


def test_a_seed_holds_behind_the_thinking_phase_too(openai: OpenAI) -> None:
    answers = [ask(openai, {}, seed=5, temperature=1.2).choices[0].message.content for _ in range(3)]
    assert len(set(answers)) == 1
    assert "</think>" in answers[0]


def test_temperature_zero_is_deterministic_where_no_coin_explores(openai: OpenAI) -> None:
    answers = {ask(openai, {"depth": 1}, temperature=0).choices[0].message.content for _ in range(2)}
    assert len(answers) == 1


@pytest.mark.parametrize("stop", ["</think>", [".", "zzz"]])
def test_stop_strings(openai: OpenAI, stop: str | list[str]) -> None:
    answer = ask(openai, {"trace": True}, stop=stop, seed=1, extra_body={"skip_special_tokens": False})
    choice = answer.choices[0]
    assert choice.finish_reason == "stop"
    assert choice.matched_stop in ([stop] if isinstance(stop, str) else stop)
    assert not any(word in choice.message.content for word in ([stop] if isinstance(stop, str) else stop))
    check_trace(choice.meta_info)


def test_logprobs_of_led_rows_are_those_of_the_tokens_that_were_returned(openai: OpenAI) -> None:
    answer = ask(openai, {"trace": True}, logprobs=True, top_logprobs=5, max_tokens=24, seed=3)
    choice = answer.choices[0]
    content = choice.logprobs.content
    assert "".join(token.token for token in content) == choice.message.content
    assert len(content) == answer.usage.completion_tokens
    check_trace(choice.meta_info)
    for token in content:
        assert len(token.top_logprobs) == 5
        ranked = [top.logprob for top in token.top_logprobs]
        assert ranked == sorted(ranked, reverse=True)
        same = [top.logprob for top in token.top_logprobs if top.token == token.token]
        assert all(abs(logprob - token.logprob) < 1e-5 for logprob in same)


def test_completions_logprobs(openai: OpenAI) -> None:
    answer = openai.completions.create(
        model=MODEL, prompt=thinking_prompt(), max_tokens=12, logprobs=3, seed=1, extra_body=led({})
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert logprobs.token_logprobs is not None
    assert all(value is not None and value <= 0 for value in logprobs.token_logprobs)


def single_letters(letters: str) -> dict[str, int]:
    return {str(token): 40 for token, text in TEXTS.items() if text in tuple(letters)}


SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["sum", "product"]},
        "is_hard": {"type": "boolean"},
        "digits": {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["kind", "is_hard", "digits"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "value", [{"trace": True}, {"phase": "all", "trace": True}, {"depth": 12, "top_k": 2, "trace": True}]
)
def test_a_json_schema_holds_while_led_explores(openai: OpenAI, value: dict[str, Any], seed: int) -> None:
    """Without --reasoning-parser the grammar holds from the first token: there is no room to think in front of it."""
    schema: Any = {"type": "json_schema", "json_schema": {"name": "kind", "schema": SCHEMA, "strict": True}}
    settings: dict[str, Any] = {"logit_bias": without_spaces(), "temperature": 1.2, "seed": seed}
    choice = ask(openai, value, response_format=schema, **settings).choices[0]
    assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(choice.message.content), SCHEMA)
    check_trace(choice.meta_info)
    assert choice.meta_info["led_stats"]["led_tokens"] > 0


def test_a_regex_holds_while_led_explores(openai: OpenAI) -> None:
    for seed in range(3):
        answer = ask(openai, {"phase": "all"}, extra_body={"regex": "[ab]{6}(17|23)"}, temperature=2.0, seed=seed)
        assert re.fullmatch("[ab]{6}(17|23)", answer.choices[0].message.content)
        assert answer.choices[0].meta_info["led_stats"]["led_tokens"] > 0


def test_a_logit_bias_reaches_the_candidates(openai: OpenAI) -> None:
    plain = ask(openai, {"trace": True}, temperature=0.6, max_tokens=1, seed=2).choices[0].meta_info
    banned = plain["led_candidates"][0][:2]
    biased = ask(
        openai, {"trace": True}, max_tokens=1, seed=2, logit_bias={str(token): -100 for token in banned}
    ).choices[0]
    weights = dict(zip(biased.meta_info["led_candidates"][0], biased.meta_info["led_exploit"][0], strict=True))
    assert all(weights.get(token, 0.0) < 1e-6 for token in banned)

    wanted = 42
    forced = ask(openai, {"trace": True}, max_tokens=6, seed=2, logit_bias={str(wanted): 100}).choices[0].meta_info
    assert [row[0] for row in forced["led_candidates"]] == [wanted] * 6
    assert min(forced["led_confidence"]) > 0.999


THOUGHT = (
    "<|im_start|>user\nWhat is 17 + 5 * 3?<|im_end|>\n<|im_start|>assistant\n<think>\nI need 17 + 5"  # and then " *"
)


@pytest.mark.parametrize("exploit", [True, False])
def test_a_banned_token_is_never_drawn_under_a_grammar(http: httpx.Client, exploit: bool) -> None:
    """The grammar leaves a few tokens, so that the banned one is a candidate; the latent layers are sure of it."""
    led = {"exploit": exploit, "trace": True}
    sampling: dict[str, Any] = {
        "regex": r" [*+-]",
        "temperature": 1.0,
        "max_new_tokens": 1,
        "n": 60,
        "sampling_seed": 5,
    }
    banned = next(token for token, text in TEXTS.items() if text == " *")

    def ask_for(**more: Any) -> list[dict[str, Any]]:
        body = {"text": THOUGHT, "sampling_params": {**sampling, **more, "custom_params": {"led": led}}}
        return list(http.post("/generate", json=body).raise_for_status().json())

    liked = [answer["output_ids"][0] for answer in ask_for()]
    assert liked.count(banned) > 20, "nobody wants this token"
    answers = ask_for(logit_bias={str(banned): -100})
    assert all(answer["output_ids"][0] != banned for answer in answers)
    assert {answer["text"] for answer in answers} <= {" +", " -", " "}
    metas = [answer["meta_info"] for answer in answers]
    assert sum(meta["led_explored"][0] for meta in metas) > 5
    for meta in metas:
        for branch in ("exploit", "explore"):
            reported = dict(zip(meta["led_candidates"][0], meta[f"led_{branch}"][0], strict=True))
            assert reported[banned] < 1e-20


def test_penalties_reach_the_candidates(openai: OpenAI) -> None:
    """Twelve letters of two, greedily: at depth 1 LED picks what the engine picks, and a penalty changes both alike.

    (SGLang counts a token one step late while steps overlap, so the second letter is not yet penalised, LED or not.)
    """

    def letters(value: object, **more: Any) -> tuple[str, list[float], dict[str, Any]]:
        settings = {"extra_body": {"regex": "[ab]{12}"}, "logit_bias": single_letters("ab"), "temperature": 0, **more}
        choice = ask(openai, value, logprobs=True, **settings).choices[0]
        return choice.message.content, [token.logprob for token in choice.logprobs.content], choice.meta_info

    value = {"depth": 1, "phase": "all", "trace": True}
    plain = letters(value)
    mixed = letters(value, frequency_penalty=2.0)
    assert mixed[:2] == letters(False, frequency_penalty=2.0)[:2]
    assert mixed[0] != plain[0]
    assert abs(mixed[0].count("a") - 6) < abs(plain[0].count("a") - 6)
    assert mixed[2]["led_confidence"][2] != plain[2]["led_confidence"][2]
    check_trace(mixed[2])


ALL_CHANGED = {
    "phase": "all",
    "exploit": False,
    "latent_norm": True,
    "normalize_layers": True,
    "min_p": 0.1,
    "trace": True,
}


@pytest.mark.parametrize(
    ("value", "applied"),
    [
        (True, DEFAULTS),
        ({}, DEFAULTS),
        (None, DEFAULTS),
        (False, {"method": "none"}),
        ({"method": "none"}, {"method": "none"}),
        ({"depth": 12, "top_k": 256}, {**DEFAULTS, "depth": 12, "top_k": 256}),
        ({"depth": 1, "top_k": 1}, {**DEFAULTS, "depth": 1, "top_k": 1}),
        ({"depth": 11, "latent_offset": 1}, {**DEFAULTS, "depth": 11, "latent_offset": 1}),
        (ALL_CHANGED, {**DEFAULTS, **ALL_CHANGED}),
    ],
)
def test_what_was_applied_is_echoed(openai: OpenAI, value: object, applied: dict[str, Any]) -> None:
    meta = ask(openai, value, max_tokens=6).choices[0].meta_info
    assert meta["led_params"] == applied
    assert ("led_stats" in meta) == (applied["method"] == "led")
    assert ("led_candidates" in meta) == applied.get("trace", False)


@pytest.mark.parametrize("value", [True, False, {"depth": 3}])
def test_metadata_is_the_same_as_custom_params(openai: OpenAI, value: object) -> None:
    answer = openai.chat.completions.create(
        model=MODEL,
        messages=messages(),
        max_tokens=4,
        metadata={"led": json.dumps(value), "team": "a"},
        extra_body={"return_meta_info": True},
    )
    expected = {"method": "none"} if value is False else {**DEFAULTS, **(value if isinstance(value, dict) else {})}
    assert answer.choices[0].meta_info["led_params"] == expected  # type: ignore[attr-defined]


def test_metadata_on_completions(openai: OpenAI, http: httpx.Client) -> None:
    def requests() -> int:
        return int(http.get("/led/info").json()["counters"]["requests"].get("none", 0))

    before = requests()
    openai.completions.create(model=MODEL, prompt="1 +", max_tokens=2, extra_body={"metadata": {"led": "false"}})
    assert requests() == before + 1


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"metadata": {"led": "{depth: 3}"}}, "metadata.led must be JSON"),
        ({"metadata": {"led": '{"depth": 0}'}}, "depth must be an integer in [1, 12]"),
        ({"metadata": {"led": "true"}, "custom_params": {"led": False}}, "disagree"),
    ],
)
def test_bad_metadata_is_refused(openai: OpenAI, endpoint: str, extra: dict[str, Any], named: str) -> None:
    create: Any = openai.chat.completions.create if endpoint == "chat" else openai.completions.create
    prompt: dict[str, Any] = {"messages": messages()} if endpoint == "chat" else {"prompt": "1 +"}
    with pytest.raises(BadRequestError) as caught:
        create(model=MODEL, max_tokens=2, extra_body=extra, **prompt)
    assert caught.value.status_code == 400
    assert named in caught.value.message


def test_n_samples_each_report_for_themselves(openai: OpenAI) -> None:
    answer = ask(openai, {"trace": True}, n=4, temperature=1.2, seed=3)
    for choice in answer.choices:
        check_trace(choice.meta_info)
    assert len({json.dumps(choice.meta_info["led_candidates"]) for choice in answer.choices}) > 1
