"""Texts and token ids of the served model's tokenizer, as the inspector's stream needs them."""

from functools import lru_cache
from typing import Any

from led_sglang.config.checks import LedParamError
from led_sglang.inspector.request import StreamRequest

__all__ = ["Pieces", "Prompt"]


class Pieces:
    """Incremental detokenisation: `push` returns what a token adds to the text, "" inside a split character."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.start = 0  # decoded from here: enough context for spaces to come out right
        self.read = 0  # text of the ids before this one was returned

    def push(self, token_id: int) -> str:
        self.ids.append(token_id)
        before = self._decode(self.ids[self.start : self.read])
        now = self._decode(self.ids[self.start :])
        if now.endswith("�") and len(self.ids) - self.read < 4:
            return ""
        self.start, self.read = self.read, len(self.ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))


class Prompt:
    """The ids of a prompt and the text of a token, by one tokenizer. Raises LedParamError where there is none."""

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer is None:
            raise LedParamError("this server runs without a tokenizer (--skip-tokenizer-init): nothing to show")
        self.tokenizer = tokenizer
        self.special = frozenset(getattr(tokenizer, "all_special_ids", ()))
        self.text = lru_cache(1 << 16)(lambda token_id: str(tokenizer.decode([token_id], skip_special_tokens=False)))

    def ids(self, request: StreamRequest) -> list[int]:
        """The prompt's token ids. Raises LedParamError where the chat template fails."""
        if request.prompt is not None:
            return list(self.tokenizer.encode(request.prompt))
        try:
            text = self.tokenizer.apply_chat_template(request.messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates are programs: they raise what they like
            raise LedParamError(f"the chat template refused the messages: {error}") from error
        return list(self.tokenizer.encode(text, add_special_tokens=False))
