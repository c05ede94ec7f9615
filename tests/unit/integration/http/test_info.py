"""What /led/info says of several data-parallel engines."""

from typing import Any

from led_sglang.integration.http.info import combine


def engine(steps: int, failures: int, fault: str | None) -> dict[str, Any]:
    return {
        "num_layers": 12,
        "step_failures": failures,
        "counters": {"led_tokens": steps, "depth_histogram": {"1": steps, "2": 1}},
        "form": {"asked": "auto", "steps": {"one_pass": 1, "coin_first": steps}, "fault": fault},
        "head": {"kind": "weight", "engine_steps": steps},
        "hook_faults": {"a": None, "b": fault},
    }


def test_no_engine_answers() -> None:
    assert combine([]) == {}


def test_one_engine_is_reported_as_it_is() -> None:
    assert combine([engine(3, 1, "broken")]) == engine(3, 1, "broken")


def test_counts_are_summed_and_any_fault_is_reported() -> None:
    reported = combine([engine(3, 1, None), engine(4, 2, "broken"), engine(0, 0, "later")])
    assert reported == {
        "num_layers": 12,
        "step_failures": 3,
        "counters": {"led_tokens": 7, "depth_histogram": {"1": 7, "2": 3}},
        "form": {"asked": "auto", "steps": {"one_pass": 3, "coin_first": 7}, "fault": "broken"},
        "head": {"kind": "weight", "engine_steps": 7},
        "hook_faults": {"a": None, "b": "broken"},
    }
