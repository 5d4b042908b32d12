"""Statistics against numbers worked by hand and printed tables."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdzero.evaluate.stats import (
    holm,
    interval_over_seeds,
    mean_and_standard_error,
    paired_difference,
    pass_at_k,
    t_quantile,
)


def test_mean_and_standard_error() -> None:
    mean, error = mean_and_standard_error([0.0, 0.5, 1.0, 0.5])
    assert mean == 0.5
    assert error == pytest.approx(math.sqrt((0.25 + 0.25) / 3 / 4))
    assert mean_and_standard_error([0.25]) == (0.25, None)
    with pytest.raises(ValueError, match="no questions"):
        mean_and_standard_error([])


@given(st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 7))
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(combinations([1] * correct + [0] * (n - correct), k))
    assert pass_at_k(correct, n, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


def test_pass_at_k_by_hand_and_out_of_range() -> None:
    assert pass_at_k(1, 4, 1) == 0.25
    assert pass_at_k(2, 4, 2) == pytest.approx(5 / 6)
    assert pass_at_k(3, 4, 2) == 1.0
    assert pass_at_k(1, 2000, 1000) == pytest.approx(0.5)
    for correct, n, k in [(-1, 4, 1), (5, 4, 1), (1, 4, 0), (1, 4, 5)]:
        with pytest.raises(ValueError, match="must be between"):
            pass_at_k(correct, n, k)


@pytest.mark.parametrize(
    ("confidence", "degrees", "table"),
    [
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.95, 3, 3.182),
        (0.95, 4, 2.776),
        (0.95, 9, 2.262),
        (0.95, 10, 2.228),
        (0.95, 30, 2.042),
        (0.95, 120, 1.980),
        (0.95, 20_001, 1.960),
        (0.99, 1, 63.657),
        (0.99, 5, 4.032),
        (0.99, 60, 2.660),
        (0.9, 7, 1.895),
        (0.5, 2, 0.816),
    ],
)
def test_t_quantile_against_the_printed_table(confidence: float, degrees: int, table: float) -> None:
    assert t_quantile(confidence, degrees) == pytest.approx(table, abs=6e-4)


@given(st.floats(0.01, 0.999), st.integers(1, 60))
def test_t_quantile_is_monotone(confidence: float, degrees: int) -> None:
    here = t_quantile(confidence, degrees)
    assert t_quantile(confidence, degrees + 1) < here < t_quantile(confidence + 5e-4, degrees)


def test_t_quantile_out_of_range() -> None:
    with pytest.raises(ValueError, match="confidence"):
        t_quantile(1.0, 3)
    with pytest.raises(ValueError, match="degrees"):
        t_quantile(0.95, 0)


def test_interval_over_seeds() -> None:
    low_high = interval_over_seeds([1.0, 2.0, 3.0])
    assert low_high is not None
    half = 4.30265 * 1 / math.sqrt(3)
    assert low_high == pytest.approx((2 - half, 2 + half), abs=1e-4)
    assert interval_over_seeds([0.7]) is None
    with pytest.raises(ValueError, match="no values"):
        interval_over_seeds([])


def test_paired_difference_by_hand() -> None:
    found = paired_difference([1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.5, 0.5])
    # Differences 1, 1, 1/2, -1/2: mean 1/2, variance 1/2. Of 16 sign patterns, those with a sum of at
    # least 2 in size: (++ ++) 3, (++ +-) and (++ -+) 2, and the three opposite ones: 6.
    assert found.difference == 0.5
    half = 3.18245 * math.sqrt(0.5) / 2
    assert found.interval == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)
    assert found.p == pytest.approx(6 / 16)
    assert not found.above


def test_no_difference_and_the_same_everywhere() -> None:
    nothing = paired_difference([1.0, 0.0, 0.5], [1.0, 0.0, 0.5])
    assert (nothing.difference, nothing.interval, nothing.p, nothing.above) == (0.0, (0.0, 0.0), 1.0, False)
    always = paired_difference([1.0] * 3, [0.0] * 3)
    assert (always.difference, always.p) == (1.0, 0.25)


def test_paired_difference_of_many_questions() -> None:
    rng = np.random.default_rng(5)
    b = rng.integers(0, 5, 300) / 4
    a = np.clip(b + rng.choice([-0.25, 0.0, 0.25, 0.5], 300), 0, 1)
    found = paired_difference(a.tolist(), b.tolist())
    assert found == paired_difference(a.tolist(), b.tolist())
    assert found.above
    assert found.p == pytest.approx(1 / 10_001)
    mirrored = paired_difference(b.tolist(), a.tolist())
    assert mirrored.interval == pytest.approx((-found.interval[1], -found.interval[0]))
    assert not mirrored.above


def test_a_sampled_p_agrees_with_the_exact_one() -> None:
    """20 equal differences, 15 up and 5 down: two-sided binomial p = 2 * P(X >= 15) = 0.0414."""
    exact = 2 * sum(math.comb(20, i) for i in range(15, 21)) / 2**20
    found = paired_difference([1.0] * 15 + [0.0] * 5, [0.0] * 15 + [1.0] * 5)
    assert found.p == pytest.approx(exact, abs=0.006)


def test_unusable_pairs() -> None:
    with pytest.raises(ValueError, match="a has 1 questions and b has 2"):
        paired_difference([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="at least two"):
        paired_difference([1.0], [0.0])


def test_holm_on_numbers_worked_by_hand() -> None:
    # Sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1, made to rise: 0.04, 0.06, 0.06, 0.06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_refuses_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, 1.5])
