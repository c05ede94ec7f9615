"""Builds the tokenizer: one token for each word and number of the problems, single bytes for everything else.

It is a byte-level BPE without merges: `ignore_merges` takes a pre-token that is in the vocabulary whole, and any other
text falls apart into its bytes, so that every user text survives encoding and decoding.

    python -m led_sglang.embedded.tokenizer --out DIR
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from led_sglang.cli import files
from led_sglang.cli.endings import guarded
from led_sglang.embedded import countdown, problems, search, solutions
from led_sglang.embedded.chat_template import CHAT_TEMPLATE

__all__ = [
    "END",
    "END_THINK",
    "MAX_POSITIONS",
    "SYSTEM_MESSAGES",
    "THINK",
    "build",
    "build_backend",
    "main",
    "padded_vocab_size",
    "save",
]

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK, END_THINK = "<think>", "</think>"
NUMBERS = range(200)
ROLES = ("system", "user", "assistant")
SYSTEM_MESSAGES = ("You are a helpful assistant.", "Think step by step.")
PUNCTUATION = ("\n\n", " =", " +", " -", " *", " (", " ((", "?", ".", ",", ":", ")", "))", "),", ").", ")).", ")?")
MAX_POSITIONS = 2048
VOCAB_MULTIPLE = 64


def _words() -> list[str]:
    """Every word of the templates, as it stands at the start of a text and after a space."""
    texts = (
        *problems.PHRASINGS,
        *solutions.OPENERS,
        *solutions.FIRST,
        *solutions.NEXT,
        *solutions.REST,
        *solutions.CHECKS,
        *solutions.ANSWERS,
        *countdown.PHRASINGS,
        *search.WORDS,
        *SYSTEM_MESSAGES,
        *ROLES,
        "so",
        "target",
    )
    words = sorted({word for text in texts for word in re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}", "", text))})
    return [form for word in words for form in (word, " " + word)]


def build_vocab() -> dict[str, int]:
    """Bytes first, then numbers, words and punctuation, each in the byte-level alphabet's spelling."""
    numbers = [form for number in NUMBERS for form in (str(number), f" {number}")]
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    whole = [spell(text)[0][0] for text in (*numbers, *_words(), *PUNCTUATION)]
    tokens = dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *whole])
    return {token: index for index, token in enumerate(tokens)}


def build_backend() -> Tokenizer:
    backend = Tokenizer(models.BPE(vocab=build_vocab(), merges=[], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (PAD, START, END)])
    # Not special: they must show in decoded text, where a client finds the end of the thinking.
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in (THINK, END_THINK)])
    return backend


def build() -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_backend(),
        eos_token=END,
        pad_token=PAD,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def padded_vocab_size(tokenizer: PreTrainedTokenizerFast) -> int:
    return -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def save(out: Path) -> None:
    # The template stays inside tokenizer_config.json: one file fewer for a server to miss.
    build().save_pretrained(out, save_jinja_files=False)


def command(argv: list[str] | None) -> None:
    """Raises CommandError."""
    parser = argparse.ArgumentParser(description="write the tokenizer's files")
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args(argv).out
    files.check_folder(out)
    save(out)


def main(argv: list[str] | None = None) -> int:
    return guarded("tokenizer", lambda: command(argv))


if __name__ == "__main__":
    sys.exit(main())
