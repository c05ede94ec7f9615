"""Markers that are plain text, which the tokenizer joins to what stands beside them, on a running server.

A grammar makes the model close its thought, answer, and think again; each token says whether it was in a thought.
"""

import re
from pathlib import Path

import pytest

from led_sglang.integration.thinking.token_texts import token_texts
from tests.server import checkpoints
from tests.server.clients import Client, Request, sharp_server
from tests.unit.integration.thinking import joining

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]

ANSWER = r"[ab]{3}</think>\n\n[ab]{6} <think>\n[ab]{60}"
MARKERS = ("--led-think-open", "<think>", "--led-think-close", "</think>")


def is_thought(text: str) -> bool:
    found = re.findall(r"</?think>", text)
    return bool(found) and found[-1] == "<think>"


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.full)])
def test_a_thought_is_what_stands_between_the_texts(ranks: int, checkpoint_folder: Path, logs: Path) -> None:
    folder = checkpoints.build("qwen3", checkpoint_folder / f"text-markers-{ranks}")
    tokenizer = joining.byte_level()
    tokenizer.save_pretrained(folder)
    texts = token_texts(tokenizer, checkpoints.VOCAB_SIZE)
    joined = [token for token, text in enumerate(texts) if text in (b">\n", b">\n\n")]
    assert len(joined) == 2
    many = ("--tp-size", str(ranks)) if ranks > 1 else ()
    log = logs / f"text-markers-{ranks}.log"
    with sharp_server(folder, log, *MARKERS, *many, "--max-total-tokens", "2048") as server:
        client = Client(server.url)
        assert client.get("/led/info")["markers"]["matched_texts"] == [["<think>"], ["</think>"]]
        prompts = ["why? <think>\n", "<think> no </think>\n\nwhy? <think>", "<think>\n\n</think>\n\n"]
        biased = {str(token): 30.0 * len(texts[token] or b"") for token in joined}  # the longer one where both fit
        replies = client.together(
            [
                Request(
                    tokenizer.encode(prompt),
                    num_tokens=36,
                    seed=number,
                    sampling={"regex": ANSWER, "logit_bias": biased},
                )
                for number, prompt in enumerate(prompts)
            ]
        )
    for prompt, reply in zip(prompts, replies, strict=True):
        spelt = [prompt]
        for token in reply.output_ids:
            spelt.append(spelt[-1] + (texts[token] or b"").decode())
        assert reply.meta["led_think"] == [is_thought(text) for text in spelt[:-1]], spelt[-1]
        assert set(joined) <= set(reply.output_ids), "or the case is an easy one"
        assert set(reply.meta["led_think"]) == {True, False}
    assert reply.meta["led_think"][:3] == [False] * 3, "the prompt closes an empty thought"
