"""What tokens spell, against the tokenizers' own decoders and xgrammar's reading of them."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mistral_common
import pytest
import xgrammar
from transformers import AutoTokenizer

from led_sglang.config.checks import LedParamError
from led_sglang.config.markers import ParserMarkers, find_markers
from led_sglang.config.server import ServerConfig
from led_sglang.integration.faults import CaptureError
from led_sglang.integration.scheduler import stage
from led_sglang.integration.soft_support import refuse_soft
from led_sglang.integration.thinking.token_texts import token_texts
from led_sglang.ops import TextAutomaton, ThinkingAutomaton
from tests.unit.integration.thinking import joining

MAKERS = {"byte-level": joining.byte_level, "sentence pieces": joining.sentence_pieces}
TEXTS = ["</think>\n\nThe answer", "<think>\n", "中文 é\t", "  two spaces", "b <|end|>"]


@pytest.mark.parametrize("name", MAKERS)
def test_every_token_spells_what_xgrammar_says(name: str) -> None:
    tokenizer = MAKERS[name]()
    size = len(tokenizer) + 5
    found = token_texts(tokenizer, size)
    expected = xgrammar.TokenizerInfo.from_huggingface(tokenizer, stop_token_ids=[0]).decoded_vocab
    assert found == [*expected, *[None] * 5], "and ids of the model's padding have no text"


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_of_a_text_spell_it(name: str, text: str) -> None:
    tokenizer = MAKERS[name]()
    texts = token_texts(tokenizer, len(tokenizer))
    spelt = b"".join(texts[token] or b"?" for token in tokenizer.encode(text, add_special_tokens=False))
    assert spelt.decode().lstrip(" ") == text.lstrip(" ")


def test_ids_beyond_the_models_vocabulary_are_left_out() -> None:
    assert len(token_texts(joining.byte_level(), 100)) == 100


@pytest.mark.parametrize("name", MAKERS)
def test_a_marker_that_is_joined_to_its_neighbours_is_found_as_text(name: str) -> None:
    """The study's cases: `<think>` with a line break, `</think>` with two, and a pre-closed empty thought."""
    tokenizer = MAKERS[name]()
    size = len(tokenizer)
    parser = ParserMarkers(("<think>", "</think>"), (), ("<tool_call>",))
    config = ServerConfig(vocab_size=size)
    found = find_markers(tokenizer, config, parser, lambda: token_texts(tokenizer, size))
    assert found is not None and found.matched_texts == (("<think>",), ("</think>", "<tool_call>"))
    automaton = TextAutomaton(*found.matched_texts, token_texts(tokenizer, size))
    for text, thinks in (
        ("<think>\n", True),
        ("<think>\nwhy", True),
        ("<think>\nwhy</think>\n\nThe", False),
        ("<think>\nwhy </think>", False),
        ("<think>\n\n</think>\n\n", False),
        ("<think>\nso\n<tool_call>\n{", False),
        ("<think>\na</think>\nb <think>c", True),
    ):
        assert automaton.thinking(automaton.run(tokenizer.encode(text, add_special_tokens=False))) == thinks, text


def test_tokens_that_do_not_spell_their_text_are_refused() -> None:
    tokenizer = joining.byte_level()
    config = ServerConfig(think_open="<t>", think_close="</t>", vocab_size=len(tokenizer))
    with pytest.raises(LedParamError, match=r"joins '</?t>' to its neighbours.*, and the tokens of .* spell"):
        find_markers(tokenizer, config, None, lambda: [b"?"] * len(tokenizer))


def test_special_tokens_stay_ids() -> None:
    """The fast path: nothing is read of the vocabulary."""
    tokenizer = joining.byte_level(specials=("<think>", "</think>"))

    def never() -> list[bytes | None]:
        raise AssertionError("ids are enough")

    found = find_markers(tokenizer, ServerConfig(), ("<think>", "</think>"), never)
    assert found is not None and found.matched_texts is None and found.open_ids == (0,)


def test_a_marker_that_is_the_beginning_of_a_special_token_is_found_as_text() -> None:
    """K2-Horizon's `<ifm|tool_call` is never spelt in letters: the model writes a special token that begins with it."""
    tokenizer = joining.byte_level(specials=("<think>", "</think>", "<ifm|tool_calls>"))
    size = len(tokenizer)
    parser = ParserMarkers(("<think>", "</think>"), (), ("<ifm|tool_call",))
    found = find_markers(tokenizer, ServerConfig(vocab_size=size), parser, lambda: token_texts(tokenizer, size))
    assert found is not None and found.matched_texts is not None
    automaton = TextAutomaton(*found.matched_texts, token_texts(tokenizer, size))
    assert automaton.thinking(automaton.run([0])) and not automaton.thinking(automaton.run([0, 2]))


@pytest.fixture(scope="module")
def tekken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Mistral's own tokenizer of 131,072 tokens, which the package brings; SGLang serves Magistral with its class."""
    folder = tmp_path_factory.mktemp("tekken")
    shutil.copy(Path(mistral_common.__file__).parent / "data/tekken_240911.json", folder / "tekken.json")
    (folder / "config.json").write_text('{"model_type": "mistral"}')
    return AutoTokenizer.from_pretrained(folder)


def test_a_special_token_that_the_tokenizer_spells_as_text_is_its_own_id(tekken: Any) -> None:
    assert len(tekken.encode("[INST]", add_special_tokens=False)) > 1, "or the case is gone"
    found = find_markers(tekken, ServerConfig(vocab_size=131072), ("[INST]", "[/INST]"), lambda: ())
    assert found is not None and (found.open_ids, found.close_ids, found.matched_texts) == ((3,), (4,), None)


def test_text_markers_of_a_real_vocabulary(tekken: Any) -> None:
    size = 131072
    texts = token_texts(tekken, size)
    config = ServerConfig(think_open="<think>", think_close="</think>", vocab_size=size)
    found = find_markers(tekken, config, None, lambda: texts)
    assert found is not None and found.matched_texts == (("<think>",), ("</think>",))
    automaton = TextAutomaton(*found.matched_texts, texts)
    ids = tekken.encode("<think>\nLet me see: 中文, naïve.</think>\n\nThe answer", add_special_tokens=False)
    spelt = [b"".join(texts[token] or b"" for token in ids[: n + 1]) for n in range(len(ids))]
    assert spelt[-1].decode().endswith("</think>\n\nThe answer")
    thinks = [automaton.thinking(automaton.run(ids[: n + 1])) for n in range(len(ids))]
    assert thinks == [b"<think>" in text and b"</think>" not in text for text in spelt]
    assert True in thinks and not thinks[-1]


def test_soft_methods_close_with_a_token_and_refuse_texts() -> None:
    config = ServerConfig(
        methods=("soft_thinking",), close_ids=(5,), think_close="</t>", matched_texts=(("<t>",), ("</t>",))
    )
    with pytest.raises(CaptureError, match=r"with one token, this model's marker '</t>' is text"):
        refuse_soft(config, SimpleNamespace())  # type: ignore[arg-type]


def test_a_scheduler_process_reads_the_texts_of_the_served_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = joining.byte_level()
    tokenizer.save_pretrained(tmp_path)
    arguments = SimpleNamespace(
        tokenizer_path=str(tmp_path), model_path="", tokenizer_mode="auto", trust_remote_code=False, revision=None
    )
    monkeypatch.setattr(stage, "in_effect", lambda given: given)
    runner: Any = SimpleNamespace(server_args=arguments)
    config = ServerConfig(open_ids=(1,), close_ids=(2,), matched_texts=(("<think>",), ("</think>",)))
    automaton = stage.automaton_of(config, runner, 1000)
    assert isinstance(automaton, TextAutomaton) and automaton.vocab_size == 1000
    assert automaton.thinking(automaton.run(tokenizer.encode("<think>\n")))
    assert not automaton.thinking(automaton.run(tokenizer.encode("<think>\nso</think>\n\nThe")))
    by_ids = stage.automaton_of(replace(config, matched_texts=None), runner, 1000)
    assert type(by_ids) is ThinkingAutomaton and by_ids.thinking(by_ids.run([1]))
    assert stage.automaton_of(ServerConfig(phase="all"), runner, 1000) is None
