"""Where the markers of the thinking phase come from, and when none is an error."""

import pytest

from led_sglang.markers import Markers, find_markers, with_markers
from led_sglang.params import LedParamError, ServerConfig


class FakeTokenizer:
    """Knows some texts as single tokens and spells the others letter by letter."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = {text: 1000 + i for i, text in enumerate(tokens)}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens, "a beginning-of-text token is no part of a marker"
        return [self.tokens[text]] if text in self.tokens else [ord(letter) for letter in text]


QWEN = FakeTokenizer("<think>", "</think>", "[THINK]", "[/THINK]")
BARE = FakeTokenizer()


def test_the_tokenizers_own_think_tokens_are_the_default() -> None:
    assert find_markers(QWEN, ServerConfig(), None) == Markers("<think>", "</think>", (1000,), (1001,))


def test_a_reasoning_parser_comes_first() -> None:
    config = ServerConfig(think_open="<a>", think_close="</a>")
    found = find_markers(QWEN, config, ("[THINK]", "[/THINK]"))
    assert found == Markers("[THINK]", "[/THINK]", (1002,), (1003,))


def test_explicit_markers_may_be_several_tokens() -> None:
    found = find_markers(QWEN, ServerConfig(think_open="<t>", think_close="</t>"), None)
    assert found is not None
    assert found.open_ids == tuple(b"<t>")
    assert found.close_ids == tuple(b"</t>")


def test_a_parsers_markers_may_be_several_tokens() -> None:
    found = find_markers(BARE, ServerConfig(), ("<think>", "</think>"))
    assert found is not None
    assert found.close_ids == tuple(b"</think>")


@pytest.mark.parametrize("tokenizer", [BARE, FakeTokenizer("<think>"), FakeTokenizer("</think>")])
def test_none_found_is_refused_with_the_ways_out(tokenizer: FakeTokenizer) -> None:
    with pytest.raises(LedParamError) as caught:
        find_markers(tokenizer, ServerConfig(phase="think"), None)
    for way_out in ("--reasoning-parser", "--led-think-open", "--led-think-close", "--led-phase all"):
        assert way_out in str(caught.value)


def test_none_found_is_fine_where_no_phase_needs_one() -> None:
    assert find_markers(BARE, ServerConfig(phase="all"), None) is None
    assert find_markers(QWEN, ServerConfig(phase="all"), None) is not None


@pytest.mark.parametrize("config", [ServerConfig(think_open="<a>"), ServerConfig(think_close="</a>")])
def test_half_a_pair_is_refused(config: ServerConfig) -> None:
    with pytest.raises(LedParamError, match="go together"):
        find_markers(QWEN, config, None)


def test_an_empty_marker_is_no_marker() -> None:
    with pytest.raises(LedParamError):
        find_markers(QWEN, ServerConfig(think_open="", think_close="</t>"), None)


def test_markers_join_the_configuration() -> None:
    config = with_markers(ServerConfig(depth=3), Markers("<a>", "</a>", (1,), (2, 3)))
    assert (config.depth, config.think_open, config.think_close) == (3, "<a>", "</a>")
    assert (config.open_ids, config.close_ids) == ((1,), (2, 3))
    assert with_markers(config, None) is config
