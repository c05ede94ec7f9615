"""Each reasoning parser of the installed release: its pair, and what else opens or ends a thought for it."""

from types import SimpleNamespace

import pytest
from sglang.srt.parser.reasoning_parser import ReasoningParser

from led_sglang.config.markers import ParserMarkers
from led_sglang.integration.thinking.parser_markers import parser_markers

PARSERS = sorted(ReasoningParser.DetectorMap)
WITHOUT = {"response_template"}
TOOL_CALLS = {
    **dict.fromkeys(("qwen3", "glm45", "ling3", "mimo", "nemotron_3", "interns1"), "<tool_call>"),
    "kimi_k2": "<|tool_calls_section_begin|>",
    "apertus2509": "<|tools_prefix|>[",
}


class Tokenizer:
    """Hunyuan 3's: its tokens carry a suffix that only the vocabulary tells."""

    def get_vocab(self) -> dict[str, int]:
        return {"<think:opensource>": 1, "</think:opensource>": 2, "<tool_calls:opensource>": 3}


def found(name: str) -> ParserMarkers | None:
    return parser_markers(SimpleNamespace(reasoning_parser=name), Tokenizer())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PARSERS)
def test_every_parser_has_a_pair(name: str) -> None:
    markers = found(name)
    if name in WITHOUT:
        assert markers is None
        return
    assert markers is not None
    assert all(markers.texts) and markers.texts[0] != markers.texts[1]
    assert not set(markers.texts) & {*markers.more_open, *markers.more_close}


@pytest.mark.parametrize(("name", "tool_call"), TOOL_CALLS.items())
def test_a_tool_call_ends_a_thought(name: str, tool_call: str) -> None:
    markers = found(name)
    assert markers is not None and tool_call in markers.more_close


def test_hunyuans_tokens_come_from_the_tokenizer() -> None:
    markers = found("hunyuan")
    assert markers is not None
    assert markers.texts == ("<think:opensource>", "</think:opensource>")
    assert markers.more_close == ("<tool_calls:opensource>",)


def test_a_pair_for_each_effort() -> None:
    markers = found("k2_horizon")
    assert markers is not None
    assert len(markers.more_open) == 2 and len(markers.more_close) == 3, "three efforts and a tool call"


def test_no_parser_has_no_markers() -> None:
    assert parser_markers(SimpleNamespace(reasoning_parser=None), None) is None  # type: ignore[arg-type]
