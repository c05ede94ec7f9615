"""The statistics against numbers worked out by hand."""

import math
from itertools import combinations

import numpy as np
import pytest

from led_sglang.evals.records import statistics as st


def test_pass_at_n_by_hand() -> None:
    assert st.pass_at(1, 4, 1) == 0.25
    assert st.pass_at(2, 4, 1) == 0.5  # 1 - C(3,2)/C(4,2) = 1 - 3/6
    assert st.pass_at(2, 4, 2) == pytest.approx(5 / 6)  # 1 - 1/6
    assert st.pass_at(4, 4, 1) == 1.0
    assert st.pass_at(16, 16, 0) == 0.0
    assert st.pass_at(8, 16, 1) == 0.5
    assert st.pass_at(4, 16, 2) == pytest.approx(1 - 1001 / 1820)  # C(14,4) / C(16,4)


def test_pass_at_n_is_the_share_of_subsets_with_a_right_one() -> None:
    is_right = [True, False, False, True, False, False]
    for n in range(1, 7):
        subsets = list(combinations(is_right, n))
        assert st.pass_at(n, 6, 2) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("n", "total", "correct"), [(5, 4, 1), (0, 4, 1), (1, 4, 5), (1, 4, -1)])
def test_pass_at_n_without_an_estimate(n: int, total: int, correct: int) -> None:
    with pytest.raises(ValueError, match="not defined"):
        st.pass_at(n, total, correct)


def test_standard_error() -> None:
    # mean 0.5, squared deviations 4 * 0.25 = 1, variance 1/3, error sqrt(1/3)/2
    assert st.standard_error(np.array([0.0, 0.0, 1.0, 1.0])) == pytest.approx(math.sqrt(1 / 3) / 2)
    assert math.isnan(st.standard_error(np.array([1.0])))


def test_slope_by_hand() -> None:
    # Row means 40, 50, 80: the slope is (80 - 40) / 2 = 20 whatever the columns do.
    grid = np.array([[30.0, 50.0], [40.0, 60.0], [60.0, 100.0]])
    assert st.slope(grid) == pytest.approx(20.0)


def test_slope_is_that_of_the_least_squares_plane() -> None:
    grid = np.random.default_rng(0).random((3, 5))
    t, n = np.meshgrid(range(3), range(5), indexing="ij")
    design = np.stack([np.ones(15), t.ravel(), n.ravel()], axis=1)
    assert st.slope(grid) == pytest.approx(np.linalg.lstsq(design, grid.ravel(), rcond=None)[0][1])
    with pytest.raises(ValueError, match="two temperatures"):
        st.slope(grid[:1])


def test_bootstrap_is_seeded() -> None:
    values = np.random.default_rng(1).normal(0.1, 1.0, 50)
    one = st.bootstrap_mean([values], seed=3, num_resamples=1000)
    assert one == st.bootstrap_mean([values], seed=3, num_resamples=1000)
    assert one != st.bootstrap_mean([values], seed=4, num_resamples=1000)
    assert one.mean == pytest.approx(values.mean())


def test_bootstrap_of_a_coin_is_the_binomial() -> None:
    # 100 zeros and ones, half each: the resampled mean is Binomial(100, 1/2)/100, whose 2.5 % point is 0.40.
    interval = st.bootstrap_mean([np.array([0.0, 1.0] * 50)])
    assert interval.low == pytest.approx(0.40, abs=0.011)
    assert interval.high == pytest.approx(0.60, abs=0.011)


def test_bootstrap_of_a_constant_has_no_width_and_excludes_zero() -> None:
    interval = st.bootstrap_mean([np.full(7, -0.25)], num_resamples=100)
    assert (interval.mean, interval.low, interval.high) == (-0.25, -0.25, -0.25)
    assert interval.excludes_zero
    assert not st.bootstrap_mean([np.array([-1.0, 1.0])], num_resamples=100).excludes_zero


def test_strata_are_averaged_and_not_pooled() -> None:
    few, many = np.full(2, 1.0), np.zeros(98)
    assert st.bootstrap_mean([few, many], num_resamples=100).mean == 0.5
    with pytest.raises(ValueError, match="nothing"):
        st.bootstrap_mean([few, np.array([])])


def test_the_interval_covers_what_it_should() -> None:
    """Nominal 95 %; of 200 experiments the chance of fewer than 176 covering is below 1 in 10,000."""
    rng = np.random.default_rng(5)
    intervals = [st.bootstrap_mean([rng.normal(0, 1, 60)], seed=i, num_resamples=400) for i in range(200)]
    assert sum(i.low <= 0 <= i.high for i in intervals) >= 176
