"""Short ways to ask the served embedded model, and what an answer must hold."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
from tokenizers import Tokenizer

from led_sglang.embedded import MODEL_DIR
from led_sglang.testing import sums

MODEL = "led-embedded"
QUESTION = "What is 17 + 5 * 3?"
CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
ENDPOINTS = (CHAT, COMPLETIONS, GENERATE)

DEFAULTS = {
    "method": "led",
    "depth": 8,
    "top_k": 8,
    "phase": "think",
    "exploit": True,
    "latent_norm": False,
    "normalize_layers": False,
    "latent_offset": 0,
    "min_p": 0.0,
    "trace": False,
}
TRACE_KEYS = (
    "led_think",
    "led_explored",
    "led_depth",
    "led_confidence",
    "led_entropy",
    "led_logprob",
    "led_candidates",
    "led_exploit",
    "led_explore",
    "led_depth_entropy",
)


def messages(text: str = QUESTION) -> list[Any]:
    return [{"role": "user", "content": text}]


def thinking_prompt(text: str = QUESTION) -> str:
    """What the chat template makes of a question: the thinking phase is open at its end."""
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n<think>\n"


def body(path: str, led: object = None, max_tokens: int = 8, **more: Any) -> dict[str, Any]:
    """A request for any of the three endpoints; `more` goes to the top level."""
    custom = {} if led is None else {"custom_params": {"led": led}}
    if path == GENERATE:
        sampling = {"temperature": 0.6, "max_new_tokens": max_tokens, **custom}
        return {"text": thinking_prompt(), "sampling_params": sampling, **more}
    prompt = {"messages": messages()} if path == CHAT else {"prompt": thinking_prompt()}
    return {"model": MODEL, **prompt, "temperature": 0.6, "max_tokens": max_tokens, **custom, **more}


def generate(
    http: httpx.Client, led: object = None, text: str | None = None, sampling: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    request = body(GENERATE, led, 64, **more)
    if text is not None:
        request["text"] = text
    request["sampling_params"].update(sampling or {})
    answer = http.post(GENERATE, json=request)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The JSON documents of a server-sent event stream."""
    for line in lines:
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def streamed(http: httpx.Client, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream over /generate."""
    with http.stream("POST", GENERATE, json={**request, "stream": True}) as answer:
        assert answer.status_code == 200, answer.read()
        return list(events(answer.iter_lines()))


def joined(chunks: Iterable[dict[str, Any]], is_incremental: bool = False) -> list[dict[str, Any]]:
    """The whole answers of a stream over /generate, in order; looks at every chunk's trace and sums."""
    wholes: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        index = chunk.get("index", 0)
        before = wholes.get(index, {"text": "", "output_ids": [], "meta_info": {}})
        new = chunk["output_ids"] if is_incremental else chunk["output_ids"][len(before["output_ids"]) :]
        text = before["text"] + chunk["text"] if is_incremental else chunk["text"]
        meta = chunk["meta_info"]
        lists = {key: values for key, values in meta.items() if key.startswith("led_") and isinstance(values, list)}
        assert set(map(len, lists.values())) <= {len(new)}, "a chunk's trace is that of its new tokens"
        trace = {key: before["meta_info"].get(key, []) + values for key, values in lists.items()}
        assert not trace or meta["led_stats"] == sums(trace), "the sums are of everything up to here"
        wholes[index] = {"text": text, "output_ids": [*before["output_ids"], *new], "meta_info": {**meta, **trace}}
    return [wholes[index] for index in sorted(wholes)]


def message_of(answer: httpx.Response) -> str:
    """The words of an error, wherever the endpoint puts them."""
    document = answer.json()
    return str(document.get("message") or document["error"]["message"])


def counters(http: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = http.get("/led/info").json()["counters"]
    return found


def growth(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """How much every counter grew; histograms without the bins that did not."""
    grown: dict[str, Any] = {}
    for key, value in after.items():
        if isinstance(value, dict):
            grown[key] = dict(Counter(value) - Counter(before.get(key, {})))
        else:
            grown[key] = value - before.get(key, 0)
    return grown


def wait_idle(http: httpx.Client, limit_s: float = 60.0) -> None:
    """Until no request runs or waits: only then does SGLang flush its cache, after checking its pools for leaks."""
    deadline = time.monotonic() + limit_s
    while (answer := http.post("/flush_cache")).status_code != 200:
        assert time.monotonic() < deadline, f"still busy after {limit_s} s: {answer.text}"
        time.sleep(0.1)


TOKENIZER = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
TEXTS = {token: TOKENIZER.decode([token], skip_special_tokens=False) for token in range(TOKENIZER.get_vocab_size())}


def without_spaces() -> dict[str, int]:
    """A grammar of JSON lets a small model put out newlines for ever; this does not."""
    return {str(token): -100 for token, text in TEXTS.items() if text != text.strip()}
