"""Where the markers of the thinking phase come from, and when none is an error."""

import re

import pytest

from led_sglang.config.checks import LedParamError
from led_sglang.config.markers import Markers, ParserMarkers, find_markers, with_markers
from led_sglang.config.server import ENV_CONFIG, ServerConfig, export_config, server_config
from led_sglang.ops.rows.automaton import ThinkingAutomaton


class FakeTokenizer:
    """Knows some texts as single tokens and spells the others letter by letter."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = {text: 1000 + i for i, text in enumerate(tokens)}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens, "a beginning-of-text token is no part of a marker"
        if not self.tokens:
            return self.letters(text)
        pieces = re.split("(" + "|".join(map(re.escape, self.tokens)) + ")", text)
        return [i for piece in pieces for i in ([self.tokens[piece]] if piece in self.tokens else self.letters(piece))]

    def letters(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


class JoiningTokenizer(FakeTokenizer):
    """As Llama 3's does with a marker that is plain text: ">" and the line breaks behind it are one token."""

    def letters(self, text: str) -> list[int]:
        return super().letters(text.replace(">\n", "\u2000"))


QWEN = FakeTokenizer("<think>", "</think>", "[THINK]", "[/THINK]")
BARE = FakeTokenizer()


def test_the_tokenizers_own_think_tokens_are_the_default() -> None:
    assert find_markers(QWEN, ServerConfig(), None) == Markers("<think>", "</think>", (1000,), (1001,))


def test_a_reasoning_parser_comes_before_the_tokenizers() -> None:
    found = find_markers(QWEN, ServerConfig(), ("[THINK]", "[/THINK]"))
    assert found == Markers("[THINK]", "[/THINK]", (1002,), (1003,))


def test_explicit_markers_come_first_and_a_contradiction_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    config = ServerConfig(think_open="[THINK]", think_close="[/THINK]")
    found = find_markers(QWEN, config, ("<think>", "</think>"))
    assert found == Markers("[THINK]", "[/THINK]", (1002,), (1003,))
    [record] = caplog.records
    for word in ("--led-think-open", "'[THINK]'", "reasoning parser", "'<think>'", "'</think>'"):
        assert word in record.getMessage()
    caplog.clear()
    assert find_markers(QWEN, config, ("[THINK]", "[/THINK]")) == found
    assert not caplog.records


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


UNUSABLE = [
    (("<t>", "<t>"), "must not begin with the other"),
    (("<t>", "<t>x"), "must not begin with the other"),
    (("<t>x", "<t>"), "must not begin with the other"),
    (("", "</t>"), "must not be empty"),
    (("<t>", ""), "must not be empty"),
    (("<t>", "\udce4"), "broken bytes"),
    (("<t\0>", "</t>"), "control characters"),
    (("\x1b[1m", "</t>"), "control characters"),
    (("same ids", "SAME IDS"), "tokens of one marker must not begin"),
    (("<t>", "nothing"), "cannot spell 'nothing'"),
    (("unknown", "</t>"), "cannot spell 'unknown'"),
    (("<t>", "\N{SNOWMAN}"), "outside of the model's vocabulary of 5000"),
]


class OddTokenizer(FakeTokenizer):
    unk_token_id = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        known: dict[str, list[int]] = {"same ids": [4], "SAME IDS": [4, 5], "nothing": [], "unknown": [3, 0]}
        return known.get(text, super().encode(text, add_special_tokens))


@pytest.mark.parametrize("phase", ["think", "all"])
@pytest.mark.parametrize(("texts", "why"), UNUSABLE)
def test_named_markers_that_cannot_work_are_refused(texts: tuple[str, str], why: str, phase: str) -> None:
    config = ServerConfig(think_open=texts[0], think_close=texts[1], phase=phase, vocab_size=5000)
    with pytest.raises(LedParamError) as caught:
        find_markers(OddTokenizer(), config, None)
    for word in ("--led-think-open", "--led-think-close", why):
        assert word in str(caught.value)


@pytest.mark.parametrize(("texts", "why"), UNUSABLE)
def test_a_parsers_markers_that_cannot_work_are_refused_where_needed(texts: tuple[str, str], why: str) -> None:
    with pytest.raises(LedParamError) as caught:
        find_markers(OddTokenizer(), ServerConfig(vocab_size=5000), texts)
    for word in ("reasoning parser", why, "--led-think-open"):
        assert word in str(caught.value)
    assert find_markers(OddTokenizer(), ServerConfig(vocab_size=5000, phase="all"), texts) is None


@pytest.mark.parametrize("texts", [("[think]", "[/think]"), ("<|channel|>analysis<|message|>", "<|end|>")])
def test_a_parser_of_another_family_is_refused(texts: tuple[str, str]) -> None:
    """LED would wait for a text that the model never writes."""
    with pytest.raises(
        LedParamError, match=r"reasoning parser's, .* are plain text to the tokenizer, which has .*<think>"
    ):
        find_markers(QWEN, ServerConfig(), texts)
    assert find_markers(QWEN, ServerConfig(think_open=texts[0], think_close=texts[1]), None) is not None
    assert find_markers(BARE, ServerConfig(), texts) is not None, "there it may be the model's own"


def test_what_is_accepted_makes_an_automaton() -> None:
    for texts in (("<t>", "</t>"), ("<t>", "\n\n"), ("</think>", "<think>"), ("t>", "<t>"), (" to=self", "<|eom|>")):
        found = find_markers(QWEN, ServerConfig(think_open=texts[0], think_close=texts[1], vocab_size=5000), None)
        assert found is not None
        ThinkingAutomaton(found.open_ids, found.close_ids, 5000)


def test_markers_join_the_configuration() -> None:
    config = with_markers(ServerConfig(depth=3), Markers("<a>", "</a>", (1,), (2, 3)))
    assert (config.depth, config.think_open, config.think_close) == (3, "<a>", "</a>")
    assert (config.open_ids, config.close_ids) == ((1,), (2, 3))
    assert with_markers(config, None) is config


@pytest.mark.parametrize("texts", [("<t>", "</t>"), ("<think>", "</t>")])
def test_a_marker_that_running_text_hides_is_refused(texts: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """It would be accepted, and then never close: LED would explore in the answer."""
    tokenizer = JoiningTokenizer("<think>")
    explicit = ServerConfig(think_open=texts[0], think_close=texts[1])
    with pytest.raises(LedParamError, match=r"--led-think-close '</t>': the tokenizer joins '<?/?t>.*would be missed"):
        find_markers(tokenizer, explicit, None)
    with pytest.raises(LedParamError, match=r"the reasoning parser's, .* cannot be used: the tokenizer joins"):
        find_markers(tokenizer, ServerConfig(), texts)
    assert find_markers(tokenizer, ServerConfig(phase="all"), texts) is None


def test_a_parsers_tool_call_ends_a_thought_and_other_pairs_count(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = JoiningTokenizer("<think>", "</think>", "<tool_call>", "<fast>", "</fast>")
    parser = ParserMarkers(("<think>", "</think>"), ("<fast>",), ("</fast>", "<tool_call>", "<calls>"))
    found = find_markers(tokenizer, ServerConfig(), parser)
    assert found is not None
    assert (found.more_open, found.more_close) == (((1003,),), ((1004,), (1002,)))
    assert "does not see the reasoning parser's '<calls>'" in caplog.text, "it is text, and hidden in running text"
    config = with_markers(ServerConfig(), found)
    assert (config.more_open, config.more_close) == (found.more_open, found.more_close)
    explicit = ServerConfig(think_open="<fast>", think_close="</fast>")
    assert find_markers(tokenizer, explicit, parser) == Markers("<fast>", "</fast>", (1003,), (1004,))


def test_the_other_markers_reach_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for config in (
        ServerConfig(open_ids=(1,), close_ids=(2,), more_open=((3, 4),), more_close=((5,), (6, 7))),
        ServerConfig(open_ids=(1,), close_ids=(2,), matched_texts=(("<t>", "<u>"), ("</t>",))),
    ):
        monkeypatch.setenv(ENV_CONFIG, "")
        export_config(config)
        assert server_config() == config


def test_a_tool_call_that_running_text_hides_is_found_as_text_with_the_others() -> None:
    tokenizer = JoiningTokenizer("<think>", "</think>")
    letters = {letter: bytes([letter]) for letter in range(128)} | {1000: b"<think>", 1001: b"</think>", 0x2000: b">\n"}
    parser = ParserMarkers(("<think>", "</think>"), (), ("<calls>",))
    found = find_markers(tokenizer, ServerConfig(), parser, lambda: [letters.get(i) for i in range(0x5000)])
    assert found is not None and found.matched_texts is None, "a neighbour has no text: the tool call is left out"
    letters[0x4E2D] = "\u4e2d".encode()
    found = find_markers(tokenizer, ServerConfig(), parser, lambda: [letters.get(i) for i in range(0x5000)])
    assert found is not None and found.matched_texts == (("<think>",), ("</think>", "<calls>"))
    assert with_markers(ServerConfig(), found).matched_texts == found.matched_texts
