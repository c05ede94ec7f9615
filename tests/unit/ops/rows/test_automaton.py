"""The thinking automaton against a ten-line oracle, for any stream and any chunking."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from led_sglang.ops import TextAutomaton, ThinkingAutomaton

MARKERS = {
    "one token each": ([1], [2]),
    "overlapping": ([1, 2, 1], [1, 2, 3]),
    "shared prefix": ([1, 2], [1, 2, 3]),
    "suffix": ([2], [1, 2]),
    "suffix the other way": ([3, 1, 2], [1, 2]),
    "self-overlapping": ([1, 1], [1, 2, 1, 1]),
    "long": ([1, 2, 3, 4, 1, 2], [4, 1, 2, 3]),
}
streams = st.lists(st.integers(0, 5), max_size=40)
names = st.sampled_from(sorted(MARKERS))


def oracle(ids, open_ids, close_ids):
    """The marker that ends last decides; of two that end together, the longer."""
    thinking = False
    for end in range(1, len(ids) + 1):
        for marker, value in sorted(((open_ids, True), (close_ids, False)), key=lambda pair: len(pair[0])):
            if list(ids[max(0, end - len(marker)) : end]) == marker:
                thinking = value
    return thinking


@given(names, streams)
def test_host_run_agrees_with_the_oracle(name, ids):
    automaton = ThinkingAutomaton(*MARKERS[name], vocab_size=6)
    assert automaton.thinking(automaton.run(ids)) == oracle(ids, *MARKERS[name])


@given(names, streams, st.lists(st.integers(0, 40), max_size=4))
def test_chunking_changes_nothing(name, ids, cuts):
    automaton, state, start = ThinkingAutomaton(*MARKERS[name], vocab_size=6), 0, 0
    for coin_threshold in [*sorted(cuts), len(ids)]:
        state, start = automaton.run(ids[start:coin_threshold], state), max(start, coin_threshold)
    assert state == automaton.run(ids)


@settings(max_examples=50)
@given(names, st.lists(streams, min_size=1, max_size=5))
def test_device_tables_agree_with_the_host(name, rows):
    automaton = ThinkingAutomaton(*MARKERS[name], vocab_size=6)
    tables, length = automaton.tables("cpu"), min(map(len, rows))
    states = torch.zeros(len(rows), dtype=torch.int64)
    for position in range(length):
        states = tables.advance(states, torch.tensor([row[position] for row in rows]))
    assert states.tolist() == [automaton.run(row[:length]) for row in rows]
    assert tables.thinking(states).tolist() == [oracle(row[:length], *MARKERS[name]) for row in rows]


@given(streams, streams)
def test_a_prompt_may_end_inside_the_phase(prompt, output):
    automaton = ThinkingAutomaton([1, 2, 1], [1, 2, 3], vocab_size=6)
    assert automaton.run(output, automaton.run(prompt)) == automaton.run(prompt + output)


def test_opening_again_after_closing():
    automaton = ThinkingAutomaton([1], [2], vocab_size=6)
    assert [automaton.thinking(automaton.run([1, 0, 2, 0, 1, 5][:n])) for n in range(7)] == [
        *(False, True, True, False, False, True, True)
    ]


def test_state_numbers():
    automaton = ThinkingAutomaton([1, 2], [3], vocab_size=6)
    assert automaton.run([]) == 0 and automaton.run([0, 1, 2, 0]) == 1 and automaton.run([5], 1) == 1


def test_ids_outside_the_vocabulary_are_ordinary_tokens():
    automaton = ThinkingAutomaton([1, 2], [3], vocab_size=6)
    assert not automaton.thinking(automaton.run([1, 10**12, 2]))
    assert automaton.thinking(automaton.run([-1, 1, 2, -5, 6]))


def test_long_prompts_take_milliseconds():
    automaton = ThinkingAutomaton([151667], [151668], vocab_size=151936)
    ids = np.random.default_rng(0).integers(0, 151000, 100_000)
    ids[[10, 50_000]] = 151667
    start = time.perf_counter()
    assert automaton.run(ids) == automaton.run(ids.tolist()) == 1
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize(("open_ids", "close_ids"), [([], [1]), ([1], []), ([1], [1]), ([1], [9]), ([-1], [2])])
def test_impossible_markers_are_refused(open_ids, close_ids):
    with pytest.raises(ValueError, match="thinking markers"):
        ThinkingAutomaton(open_ids, close_ids, vocab_size=6)


SEVERAL = {
    "a tool call": ([[1]], [[2], [3]]),
    "pairs by effort": ([[1, 0], [1, 2], [1, 3]], [[4, 0], [4, 2], [5]]),
    "one within another": ([[1, 2, 3], [2]], [[2, 3], [1]]),
}


def oracle_of_several(ids, opening, closing):
    """The marker that ends last decides; of those that end together, the longest."""
    thinking = False
    markers = sorted([(m, True) for m in opening] + [(m, False) for m in closing], key=lambda pair: len(pair[0]))
    for end in range(1, len(ids) + 1):
        for marker, value in markers:
            if list(ids[max(0, end - len(marker)) : end]) == marker:
                thinking = value
    return thinking


@given(st.sampled_from(sorted(SEVERAL)), streams)
def test_several_markers_open_and_close(name, ids):
    (opening, *more_open), (closing, *more_close) = SEVERAL[name]
    automaton = ThinkingAutomaton(opening, closing, 6, more_open, more_close)
    assert automaton.thinking(automaton.run(ids)) == oracle_of_several(ids, *SEVERAL[name])


def test_a_marker_of_both_meanings_is_refused():
    with pytest.raises(ValueError, match="must be different"):
        ThinkingAutomaton([1], [2], 6, more_close=[[1]])


TEXTS = {
    "one each": (["<t>"], ["</t>"]),
    "of letters alone": (["ab"], ["ba"]),
    "suffix": (["b>"], ["ab>"]),
    "several": (["<t>", "<u>"], ["</t>", "</u", "<c>"]),
    "beyond ASCII": (["◁t▷"], ["◁/t▷"]),
}
PIECES = [b"", None, b"<", b"</", b"t", b"t>", b">\n\n", b"<t>a</t>", b"a", b"b", b"ab", b">b>", b"</t><", b"u", b"c>"]
PIECES += ["◁".encode()[:1], "◁".encode()[1:], "◁t".encode(), "▷".encode(), b"/", b" <", b"a</u> <t"]


def text_oracle(ids, opening, closing):
    """Whether the text of all tokens ends in a thought; no marker reaches over a token without a text."""
    spelt, thinking = b"".join(b"\xff" if PIECES[i] is None else PIECES[i] for i in ids), False
    markers = [(text.encode(), True) for text in opening] + [(text.encode(), False) for text in closing]
    for end in range(1, len(spelt) + 1):
        for marker, value in sorted(markers, key=lambda pair: len(pair[0])):
            if spelt[:end].endswith(marker):
                thinking = value
    return thinking


@given(st.sampled_from(sorted(TEXTS)), st.lists(st.integers(0, len(PIECES) - 1), max_size=30), st.integers(0, 30))
def test_texts_are_found_however_they_are_cut_into_tokens(name, ids, cut):
    automaton = TextAutomaton(*TEXTS[name], PIECES)
    tables, states = automaton.tables("cpu"), torch.zeros(1, dtype=torch.int64)
    for n, token in enumerate(ids, start=1):
        states = tables.advance(states, torch.tensor([token]))
        assert bool(states[0] & 1) == text_oracle(ids[:n], *TEXTS[name])
    assert states.tolist() == [automaton.run(ids)] == [automaton.run(ids[cut:], automaton.run(ids[:cut]))]


def test_the_tables_of_a_whole_vocabulary_are_small_and_quick():
    """151,936 tokens of up to 12 bytes, and one of 200: what a start waits for."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz <>/\n", np.uint8)
    pieces = [letters[rng.integers(0, len(letters), size)].tobytes() for size in rng.integers(1, 12, 151935)]
    started = time.perf_counter()
    automaton = TextAutomaton(["<think>"], ["</think>", "<tool_call>"], [*pieces, b" " * 200])
    assert time.perf_counter() - started < 10, "seconds; half of one on an idle core"
    assert automaton.num_symbols < 2000 and automaton.vocab_size == 151936


@pytest.mark.parametrize(
    ("opening", "closing"), [([], ["a"]), (["a"], []), ([""], ["a"]), (["a"], ["b", ""]), (["a", "b"], ["b"])]
)
def test_impossible_texts_are_refused(opening, closing):
    with pytest.raises(ValueError, match="thinking markers"):
        TextAutomaton(opening, closing, PIECES)
