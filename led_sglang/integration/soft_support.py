"""Soft Thinking: what a start must not combine with it. Asked before weights are loaded, and again with the model."""

from typing import TYPE_CHECKING

from led_sglang.config.methods import METHOD_TABLE
from led_sglang.config.server import ServerConfig
from led_sglang.integration.faults import CaptureError

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs


def is_soft_enabled(config: ServerConfig) -> bool:
    """A method that feeds mixtures is enabled."""
    return any(METHOD_TABLE[method].feeds_mixtures for method in config.methods)


def refuse_soft(config: ServerConfig, server_args: "ServerArgs") -> None:
    """Raises CaptureError where a soft method is enabled that cannot work with these arguments and markers."""
    if not is_soft_enabled(config):
        return
    if getattr(server_args, "enable_mixed_chunk", False):
        raise CaptureError(
            "soft_thinking does not work with --enable-mixed-chunk: rows that decode beside a prompt's chunk would be "
            "fed plain embeddings. Drop the flag or the soft methods from --led-methods"
        )
    if config.matched_texts is not None:
        raise CaptureError(
            f"soft_thinking closes the thinking phase with one token, this model's marker {config.think_close!r} is "
            f"text that its tokenizer joins to what stands beside it"
        )
    if len(config.close_ids) != 1:
        raise CaptureError(
            f"soft_thinking closes the thinking phase with one token, this model's marker {config.think_close!r} has "
            f"{len(config.close_ids)}"
        )
