"""Charts: round ticks, thinned lines, points where they belong, the flows of a revision."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdzero.report.charts import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, line_chart, thinned, ticks
from sdzero.report.flows import flow, mean_revision
from sdzero.report.verdict import comes_out


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_cover_their_range_in_equal_steps(low: float, width: float) -> None:
    found = ticks(low, low + width)
    step = found[1] - found[0]
    assert found[0] <= low + step * 1e-6
    assert found[-1] >= low + width - step * 1e-6
    assert 2 <= len(found) <= 9


def test_ticks_are_round() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(0, 94) == [0, 20, 40, 60, 80, 100]
    assert ticks(3, 3)[0] <= 3 <= ticks(3, 3)[-1]


def test_long_lines_are_averaged_in_bins() -> None:
    points = [(float(x), float(x % 2)) for x in range(1000)]
    found = thinned(points, 100)
    assert len(found) == 100
    assert found[0] == (4.5, 0.5)
    assert thinned(points[:7], 100) == points[:7]
    with pytest.raises(ValueError, match="not a number"):
        thinned([(0.0, float("nan"))], 10)


def test_points_are_drawn_where_they_belong() -> None:
    chart = line_chart("rewards", "step", [Line("a", [(0, 0), (10, 1)])])
    assert chart is not None
    places = re.search(r'points="([^"]+)"', chart.svg)
    assert places is not None
    (x0, _), (x1, y1) = [tuple(map(float, pair.split(","))) for pair in places[1].split()]
    assert (x0, x1, y1) == (LEFT, WIDTH - RIGHT, TOP)
    assert y1 < HEIGHT
    assert chart.table == [("a", [("0", "0"), ("10", "1")])]
    assert 'aria-label="rewards, by step. a: from 0 to 1"' in chart.svg


def test_lines_without_points_are_left_out_and_keep_the_styles_of_the_others() -> None:
    assert line_chart("t", "x", [Line("a", [])]) is None
    chart = line_chart("t", "x", [Line("a", []), Line('<b> & "c"', [(1, 1), (2, 2)])])
    assert chart is not None
    assert chart.styles == [1]
    assert "&lt;b&gt; &amp; &quot;c&quot;" in chart.svg
    assert "<b>" not in chart.svg


def test_flows_add_up() -> None:
    found = flow("SRT", {"first": 0.4, "revised": 0.6, "correction_rate": 0.5, "regression_rate": 0.25})
    assert found.wrong_right == pytest.approx(0.3)
    assert found.right_wrong == pytest.approx(0.1)
    assert found.right_right == pytest.approx(0.3)
    assert found.wrong_wrong == pytest.approx(0.3)
    assert "40.0% right before and 60.0% after" in found.svg


def test_the_mean_of_revisions_has_the_means_of_their_shares() -> None:
    one = {"first": 0.4, "revised": 0.6, "correction_rate": 0.5, "regression_rate": 0.25}
    other = {"first": 1.0, "revised": 0.9, "correction_rate": 0.0, "regression_rate": 0.1}
    found = flow("mean", mean_revision([one, other]))
    assert found.wrong_right == pytest.approx(0.15)
    assert found.right_wrong == pytest.approx(0.1)
    assert found.right_right == pytest.approx(0.6)
    assert mean_revision([one]) == pytest.approx(one)


def test_above_means_that_the_interval_excludes_zero() -> None:
    assert comes_out([0.01, 0.2]) == "above"
    assert comes_out([-0.2, -0.01]) == "below"
    assert comes_out([0.0, 0.2]) == "undecided"
    assert comes_out([-0.1, 0.1]) == "undecided"
