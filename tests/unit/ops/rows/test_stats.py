"""What a step tells of its rows and how they are counted: compiled loops, torch and names against plain Python."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from led_sglang.ops.rows import stats
from led_sglang.ops.types import Counters
from led_sglang.wire import CONFIDENCE_BOUNDS, NUM_BUCKETS, NUM_REASONS
from tests.unit.ops.cases.stats_cases import MAX_DEPTH, NUM_METHODS, compare_counted, count, draw

METHODS = [f"method {i}" for i in range(NUM_METHODS)]


def expected(case: dict[str, Any]) -> dict[str, Any]:
    """The same in dictionaries."""
    found: Counter[str] = Counter()
    depths, sure, tokens, reasons = Counter(), Counter(), Counter(), Counter()
    for r in range(len(case["active"])):
        column = {key: value[r].item() for key, value in case.items() if isinstance(value, torch.Tensor)}
        tokens[METHODS[column["method"]]] += 1
        found["thinking_tokens"] += column["thinking"]
        found["led_tokens"] += column["active"]
        if not column["active"]:
            continue
        if not case["is_decided"]:
            reasons["step_failed"] += case["has_failed"]
        elif not column["ok"]:
            reasons["not_finite"] += 1
        else:
            above = [str(bound) for bound in CONFIDENCE_BOUNDS if column["confidence"] <= bound]
            sure[above[0] if above else "+Inf"] += 1
            if column["explored"]:
                found["explored_tokens"] += 1
                depths[str(column["depth"])] += 1
    histograms = {"depth_histogram": depths, "confidence_histogram": sure, "tokens": tokens}
    return {**found, "fallbacks": reasons.total(), "fallback_reasons": reasons, **histograms}


def without_zeros(counts: dict[str, Any]) -> dict[str, Any]:
    kept = {key: +Counter(value) if isinstance(value, dict) else value for key, value in counts.items()}
    return {key: value for key, value in kept.items() if value}


@pytest.mark.parametrize("backend", ["numba", "torch"])
@given(st.integers(0, 1 << 30), st.integers(0, 9), st.booleans(), st.booleans())
def test_counts_are_those_of_the_rows(backend, seed, num_rows, is_decided, has_failed):
    case = draw(seed, num_rows, is_decided, has_failed)
    flags, counters = count(case, backend)
    again, _ = count(case, backend, counters)
    counts = counters.values.numpy()
    named = stats.to_dict(counts, counters.method_offset, METHODS)
    twice = {key: Counter(v) + Counter(v) if isinstance(v, dict) else 2 * v for key, v in expected(case).items()}
    assert without_zeros(named) == without_zeros(twice)
    assert torch.equal(flags, again)
    # What the host takes back is what the device counted.
    for _ in range(2):
        stats.count(flags.tolist(), case["method"].tolist(), -1, counts, counters.method_offset)
    assert not counts.any()


@given(st.integers(0, 1 << 30), st.integers(0, 9), st.booleans(), st.booleans())
def test_compiled_and_torch_agree(seed, num_rows, is_decided, has_failed):
    case = draw(seed, num_rows, is_decided, has_failed)
    (compiled, counted), (plain, added) = count(case, "numba"), count(case, "torch")
    assert compiled.dtype == plain.dtype and torch.equal(compiled, plain)
    assert torch.equal(counted.values, added.values)


@pytest.mark.parametrize("is_decided", [True, False])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_some_rows_count(backend, is_decided):
    for seed in range(20):
        compare_counted(backend, seed, is_decided)


def test_every_name_has_its_place():
    counters = Counters.zeros(MAX_DEPTH, NUM_METHODS, torch.device("cpu"))
    named = stats.to_dict(np.arange(len(counters.values)), counters.method_offset, METHODS)
    assert len(named["fallback_reasons"]) == NUM_REASONS
    assert len(named["confidence_histogram"]) == NUM_BUCKETS == len(CONFIDENCE_BOUNDS) + 1
    assert list(named["depth_histogram"]) == [str(depth) for depth in range(1, MAX_DEPTH + 1)]
    assert list(named["tokens"]) == METHODS
