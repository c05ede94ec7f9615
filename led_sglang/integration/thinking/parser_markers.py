"""The markers of SGLang's reasoning parsers, with the served tokenizer."""

from typing import TYPE_CHECKING, Any

from led_sglang.config.markers import ParserMarkers

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs


def parser_markers(server_args: "ServerArgs", tokenizer: Any) -> ParserMarkers | None:
    """None without a parser, and for one that has no markers of its own.

    Hunyuan's names of its tokens depend on the tokenizer. K2-Horizon has a pair for each effort of a request.
    """
    name = getattr(server_args, "reasoning_parser", None)
    if not name:
        return None
    from sglang.srt.parser.reasoning_parser import ReasoningParser

    try:
        detector = ReasoningParser(name, stream_reasoning=False, tokenizer=tokenizer).detector
    except ValueError:  # "response_template" reads them from each request's template
        return None
    texts = detector.think_start_token, detector.think_end_token
    efforts = tuple(getattr(detector, "_EFFORT_TOKENS", {}).values())
    opens = [start for start, _ in efforts]
    tools = getattr(detector, "tool_start_token", None) or getattr(detector, "_tool_start_token", None)
    closes = [end for _, end in efforts] + ([tools] if tools else [])
    return ParserMarkers(
        texts,
        tuple(text for text in dict.fromkeys(opens) if text not in texts),
        tuple(text for text in dict.fromkeys(closes) if text not in texts),
    )
