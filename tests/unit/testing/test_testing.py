"""`led_sglang.testing` without a server or a model."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from led_sglang import testing
from led_sglang.config.fields import LedParams
from led_sglang.testing import Comparison, Query, Request, Step, check_trace, led_server
from led_sglang.testing.oracle import TOLERANCE, is_thinking

OPEN, CLOSE = 7, 8


def test_a_query_has_leds_parameters_with_their_defaults() -> None:
    query, params = Query(), LedParams()
    names = set(vars(query)) - {"temperature"}
    assert names <= set(vars(params))
    assert {name: getattr(query, name) for name in names} == {name: getattr(params, name) for name in names}


def test_a_request_sends_what_differs_from_the_defaults() -> None:
    body = Request([1, 2], Query(temperature=0.0, depth=3, exploit=False), num_tokens=5, seed=4).body()
    led = {"trace": True, "depth": 3, "exploit": False}
    sampling = {"temperature": 0.0, "max_new_tokens": 5, "ignore_eos": True, "sampling_seed": 4}
    sampling["custom_params"] = {"led": led}
    assert body == {"input_ids": [1, 2], "sampling_params": sampling, "stream": False}


def test_further_keys_win() -> None:
    body = Request([1], sampling={"ignore_eos": False, "top_p": 0.5}, top_level={"return_logprob": True}).body()
    assert "sampling_seed" not in body["sampling_params"]
    assert body["sampling_params"]["ignore_eos"] is False and body["sampling_params"]["top_p"] == 0.5
    assert body["return_logprob"] is True


def test_a_server_is_stopped_at_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []

    class Server:
        url = "http://127.0.0.1:1"

        def __init__(self, *arguments: str, log: Path, environment: dict[str, str] | None = None) -> None:
            calls.append((arguments, log, environment))

        def __enter__(self) -> "Server":
            return self

        def __exit__(self, *_: object) -> None:
            calls.append("stopped")

    monkeypatch.setattr(testing, "Server", Server)

    def fail() -> None:
        with led_server("--led-depth", "4", log=tmp_path / "log", environment={"A": "1"}) as client:
            assert client.url == Server.url
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert calls == [(("--led-depth", "4"), tmp_path / "log", {"A": "1"}), "stopped"]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([], False), ([1], False), ([OPEN], True), ([OPEN, CLOSE, 1], False), ([CLOSE, OPEN, 1], True)],
)
def test_the_last_marker_decides(ids: list[int], expected: bool) -> None:
    assert is_thinking(ids, OPEN, CLOSE) is expected


def test_aggregates_by_hand() -> None:
    """Eq. 4: sums of the layers' probabilities of the candidates, from the final layer back, normalised."""
    step = Step(np.array([0.5, 0.25, 0.25]), np.array([[0.0, 0.25, 0.75], [0.1, 0.8, 0.1]]))
    plain = step.aggregates([0, 1], normalize_layers=False)
    assert plain == pytest.approx(np.array([[2 / 3, 1 / 3], [0.5, 0.5], [0.6 / 1.9, 1.3 / 1.9]]))
    by_layer = step.aggregates([0, 1], normalize_layers=True)
    assert by_layer == pytest.approx(np.array([[2 / 3, 1 / 3], [1 / 3, 2 / 3], [7 / 27, 20 / 27]]))


@pytest.mark.parametrize("reported", [1 + 2 * TOLERANCE, float("nan"), float("inf")])
def test_what_is_not_near_is_a_fault(reported: float) -> None:
    comparison = Comparison()
    comparison.near("x", 1 + TOLERANCE / 2, 1.0)
    assert not comparison.faults and comparison.worst == pytest.approx(TOLERANCE / 2)
    comparison.near("x", reported, 1.0)
    assert len(comparison.faults) == 1 and comparison.worst == pytest.approx(TOLERANCE / 2)


def meta() -> dict[str, Any]:
    """One token outside the phase, one that explored inside."""
    pairs = {"led_candidates": [3, 4], "led_exploit": [0.75, 0.25], "led_explore": [0.5, 0.5]}
    numbers = {
        "led_confidence": 0.4,
        "led_entropy": 0.69,
        "led_logprob": -0.5,
        **pairs,
        "led_depth_entropy": [0.6, 0.69, 0.6, 0.5],
    }
    stats = {"led_tokens": 1, "thinking_tokens": 1, "explored_tokens": 1, "mean_depth": 2.0, "fallbacks": 0}
    flags = {"led_think": [False, True], "led_explored": [False, True], "led_depth": [None, 2]}
    columns = {key: [None, value] for key, value in numbers.items()}
    params = {"depth": 4, "top_k": 2}
    return {**flags, **columns, "completion_tokens": 2, "led_params": params, "led_stats": stats}


FAULTS: list[tuple[str, int, Any]] = [
    ("led_think", 1, False),
    ("led_explored", 0, True),
    ("led_explored", 1, False),
    ("led_depth", 1, 5),
    ("led_depth", 1, 0),
    ("led_confidence", 0, 0.1),
    ("led_confidence", 1, 1.1),
    ("led_entropy", 1, -0.1),
    ("led_logprob", 1, 0.1),
    ("led_candidates", 1, [3]),
    ("led_exploit", 1, [0.75, 0.2]),
    ("led_explore", 1, [0.5, 0.4, 0.1]),
    ("led_depth_entropy", 1, [0.6, 0.69, 0.6]),
    ("led_depth_entropy", 1, [0.69, 0.6, 0.6, 0.5]),
]


@pytest.mark.parametrize(("key", "at", "value"), FAULTS)
def test_an_answer_that_disagrees_with_itself(key: str, at: int, value: Any) -> None:
    good = meta()
    check_trace(good)
    bad = copy.deepcopy(good)
    bad[key][at] = value
    with pytest.raises(AssertionError):
        check_trace(bad)
    with pytest.raises(AssertionError):
        check_trace({**good, key: good[key][:1]})


def test_the_public_names_are_there() -> None:
    assert all(hasattr(testing, name) for name in testing.__all__)
