"""The parts of traces that need no server."""

from typing import Any

from led_sglang import trace

TOKEN: dict[str, Any] = {
    "i": 0,
    "id": 7,
    "text": " seven",
    "think": True,
    "explored": True,
    "depth": 3,
    "confidence": 0.4,
    "candidates": [[5, " five"], [7, " seven"]],
    "exploit": [0.7, 0.3],
    "explore": [0.5, 0.5],
}


def test_a_turn_is_an_explored_token_that_is_not_the_favourite() -> None:
    assert trace.is_turn(TOKEN)
    assert not trace.is_turn({**TOKEN, "id": 5})
    assert not trace.is_turn({**TOKEN, "explored": False})
    assert not trace.is_turn({**TOKEN, "explored": False, "candidates": None})


def test_figures() -> None:
    outside = {**TOKEN, "explored": False, "depth": None, "confidence": None, "candidates": None}
    tokens = [TOKEN, {**TOKEN, "depth": 4}, {**TOKEN, "explored": False}, {**TOKEN, "explored": False}, outside]
    assert trace.figures(tokens) == {"tokens": "5", "explored": "50 %", "mean depth": "3.5", "turns": "2"}
    assert trace.figures([])["explored"] == "-"


def test_style_shows_confidence_and_exploration_apart() -> None:
    assert "cyan" in trace.style(TOKEN)
    assert trace.style({**TOKEN, "id": 5}).startswith("underline")
    assert trace.style({**TOKEN, "explored": False, "confidence": 1.0}) == ""
    assert trace.style({**TOKEN, "explored": False, "confidence": 0.2}) != ""
    assert trace.style({**TOKEN, "confidence": None}) == ""


def test_output_cannot_drive_the_terminal() -> None:
    assert trace._printable("a\x1b[2Jb\x07\u202e\n") == "a\ufffd[2Jb\ufffd\ufffd\n"


def test_the_request_leaves_the_servers_defaults_alone() -> None:
    options = trace.parse_arguments(["why?", "--depth", "4"])
    assert trace.body(options, "led")["led"] == {"depth": 4}
    assert trace.body(options, "plain")["side"] == "plain"
