"""What each token of the served tokenizer adds to a text, in bytes.

Byte-level vocabularies (GPT-2 and after) write a byte as a printable letter; SentencePiece's write a space as U+2581
and a byte that is in no piece as <0x0A>. Added tokens are their own text in both.
"""

import re
from typing import Any

BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"


def token_texts(tokenizer: Any, vocab_size: int) -> list[bytes | None]:
    """By token id, of the model's whole vocabulary; None: the tokenizer has no text of it."""
    texts: list[bytes | None] = [None] * vocab_size
    pieces: Any = getattr(getattr(getattr(tokenizer, "tokenizer", None), "instruct_tokenizer", None), "tokenizer", None)
    if hasattr(pieces, "id_to_byte_piece"):  # mistral-common, whose vocabulary names no bytes
        for token in range(min(vocab_size, pieces.n_words)):
            is_special = pieces.is_special(token)
            texts[token] = pieces.id_to_piece(token).encode() if is_special else pieces.id_to_byte_piece(token)
        return texts
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    added = {token: str(content) for token, content in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    letters = byte_letters()
    is_byte_level = SPACE not in "".join(vocabulary) and all(letter in vocabulary for letter in letters)
    for piece, token in vocabulary.items():
        if not 0 <= token < vocab_size:
            continue
        if token in added:
            texts[token] = added[token].encode("utf-8", "replace")
        elif is_byte_level:
            known = [letters.get(letter) for letter in piece]
            texts[token] = None if None in known else bytes(known)  # type: ignore[arg-type]
        else:
            found = BYTE_PIECE.fullmatch(piece)
            texts[token] = bytes([int(found[1], 16)]) if found else piece.replace(SPACE, " ").encode("utf-8", "replace")
    return texts


def byte_letters() -> dict[str, int]:
    """GPT-2's letter of each byte: itself where it is printable in Latin-1, else the next one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(0x100 + number): byte for number, byte in enumerate(others)},
    }
