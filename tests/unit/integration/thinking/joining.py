"""Tokenizers that write a marker in running text with other tokens than alone, as real ones do."""

import json
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# GPT-4's, Llama 3's and Qwen's: line breaks stick to the punctuation before them.
SPLIT = r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
CORPUS = [
    "<think>\nwhy</think>\n\nThe answer is 4.\n\n",
    "a > b\n\n",
    "x</think>\n",
    "hm </think> so",
    "<think>well",
]


def byte_level(vocab_size: int = 420, specials: tuple[str, ...] = ("<|end|>",)) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentence_pieces() -> Any:
    """Llama 2's form: a space is U+2581, and what is in no piece is bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<|end|>"], show_progress=False)
    tokenizer.train_from_iterator([text.replace(" ", "\u2581").replace("\n", "") for text in CORPUS * 50], trainer)
    # A trainer makes no byte pieces, which are ordinary ones.
    document = json.loads(tokenizer.to_str())
    vocabulary = document["model"]["vocab"]
    vocabulary.update({f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)})
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(document)), unk_token="<unk>")
