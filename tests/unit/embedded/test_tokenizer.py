"""The tokenizer loses no text, keeps words and numbers whole, and is the one that its script builds."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from led_sglang.embedded import MODEL_DIR, tasks, tokenizer
from training import MODEL_DIRS

BUILT = tokenizer.build()


@pytest.fixture(scope="module")
def committed() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_survives(text: str) -> None:
    assert BUILT.decode(BUILT.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", " 17", "17", "250", " ", "\n", "What", "é", "漢", "🙂", ")*("]))
)
def test_text_around_tokens_survives(parts: list[str]) -> None:
    text = "".join(parts)
    assert BUILT.decode(BUILT.encode(text)) == text


def test_every_code_point_of_the_basic_plane_survives() -> None:
    text = "".join(chr(point) for point in range(0x10000) if not 0xD800 <= point < 0xE000)
    assert BUILT.decode(BUILT.encode(text)) == text


@pytest.mark.parametrize("text", ["<think>", "</think>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "199", " 42"])
def test_is_one_token(text: str) -> None:
    assert len(BUILT.encode(text)) == 1


def test_only_the_chat_marks_are_special() -> None:
    ids = BUILT.encode("<|im_start|><think>5</think><|im_end|><|endoftext|>")
    assert BUILT.decode(ids, skip_special_tokens=True) == "<think>5</think>"
    assert BUILT.eos_token == "<|im_end|>"
    assert BUILT.pad_token == "<|endoftext|>"


def test_problems_use_whole_words_and_numbers() -> None:
    drawn = [*tasks.generate("arithmetic", "train", 200, seed=3), *tasks.generate("countdown", "train", 200, seed=3)]
    for problem in drawn:
        tokens = BUILT.tokenize(f"{problem.question} {problem.thinking} {problem.answer_text}")
        spelled = [token for token in tokens if len(token) == 1 and token.isalpha() and token not in ("I", "Ġ")]
        assert spelled == []


def test_committed_files_are_what_the_script_writes(tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for folder in MODEL_DIRS.values():
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert json.loads((tmp_path / name).read_text()) == json.loads((folder / name).read_text())


def test_auto_tokenizer_encodes_alike(committed: PreTrainedTokenizerFast) -> None:
    text = "What is (3 + 14) * 2? ünï <think>\n</think>"
    assert committed.encode(text) == BUILT.encode(text)
    assert committed.decode(committed.encode(text)) == text
