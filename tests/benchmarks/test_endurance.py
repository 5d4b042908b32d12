"""The fit of memory over steps, what counts as a fault of a long run, and one long run."""

from dataclasses import replace
from pathlib import Path

import pytest
from endurance import BLOCKS, KEPT, LARGEST_GROWTH, Endurance, measure, slope_with_interval

GOOD = Endurance(2000, 500, 10.0, -5.0, 25.0, (500.0, 501.0), (9, 9), KEPT)


def test_the_slope_of_a_line_is_found_and_its_interval_has_no_width() -> None:
    slope, low, high = slope_with_interval([1000.0 + 3.0 * step for step in range(10 * BLOCKS)])
    assert slope == pytest.approx(3.0)
    assert (low, high) == pytest.approx((3.0, 3.0))


def test_what_goes_up_and_down_has_no_slope_for_sure() -> None:
    values = [1000.0 + 50.0 * (step // 10 % 2) for step in range(10 * BLOCKS)]
    _, low, high = slope_with_interval(values)
    assert low < 0 < high


def test_a_lone_spike_in_a_block_does_not_matter() -> None:
    values = [1000.0] * (10 * BLOCKS)
    values[17] = 1e9
    assert slope_with_interval(values) == (0.0, 0.0, 0.0)


def test_too_few_steps_make_no_fit() -> None:
    with pytest.raises(ValueError, match=f"do not make {BLOCKS} blocks"):
        slope_with_interval([1.0] * (BLOCKS - 1))


def test_each_fault_of_a_long_run_is_told() -> None:
    assert GOOD.faults() == []
    bad = replace(GOOD, high=LARGEST_GROWTH + 1.0, open_files=(9, 10), most_checkpoints=KEPT + 1)
    assert [fault.split()[0] for fault in bad.faults()] == ["memory", "open", str(KEPT + 1)]


@pytest.mark.slow
def test_two_thousand_steps_leave_nothing_behind(tmp_path: Path) -> None:
    found, watch = measure(2000, 500, tmp_path)
    assert found.steps == 2000
    assert found.faults() == []
    assert watch.kept[-1] == KEPT
