"""Rollouts one step ahead with two processes, against one process on the same questions."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ahead_bench import rows_of
from ahead_parallel_work import sampled_elsewhere
from data_parallel_work import assert_equal_weights, ledger_of, phase_2, with_fsdp, without_fsdp
from in_ranks import in_ranks


def test_two_processes_sample_ahead_what_one_does(tmp_path: Path) -> None:
    """Batches of 4, the last of 2; rehearsal, and a sync after two steps."""
    ahead = partial(phase_2, rollouts_ahead=1)
    (alone,) = in_ranks(ahead, tmp_path / "one", processes=1)
    first, second = in_ranks(ahead, tmp_path / "two")
    for who in ("student", "teacher"):
        assert_equal_weights(first[who], second[who], 0.0)
        assert_equal_weights(first[who], alone[who], 1e-10)
    for own in (first, second):
        for row, expected in zip(own["metrics"], alone["metrics"], strict=True):
            assert row == pytest.approx(expected, rel=1e-6)
    assert ledger_of(tmp_path / "two") == ledger_of(tmp_path / "one")
    for step, version in enumerate((0, 0, 1)):
        rows = rows_of(tmp_path / "two", step)
        assert rows == rows_of(tmp_path / "one", step)
        assert {row["weight_version"] for row in rows} == {version}


@pytest.mark.slow
def test_three_steps_ahead_are_two_and_one(tmp_path: Path) -> None:
    """Bit for bit, with the responses that the weights of before have sampled."""
    ahead = partial(phase_2, rollouts_ahead=1)
    expected, _ = in_ranks(ahead, tmp_path / "whole")
    cut = in_ranks(partial(ahead, stop_after=2), tmp_path / "cut")
    assert [row["step"] for row in cut[0]["reported"]] == [1, 2]
    resumed = in_ranks(ahead, tmp_path / "cut")
    assert [row["step"] for row in resumed[0]["reported"]] == [3]
    for own in resumed:
        assert_equal_weights(own["student"], expected["student"], 0.0)
    assert ledger_of(tmp_path / "cut") == ledger_of(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("setting", [without_fsdp, with_fsdp], ids=["ddp", "fsdp2"])
def test_an_engine_elsewhere_serves_both_during_the_update(tmp_path: Path, setting: Any) -> None:
    """The first process has it sample for all; the second only waits for what it gives."""
    (alone,) = in_ranks(sampled_elsewhere, tmp_path / "one", processes=1)
    own = in_ranks(partial(setting, sampled_elsewhere), tmp_path / "two")
    assert alone["threads"] == own[0]["threads"] == ["MainThread", "rollouts-ahead", "rollouts-ahead"]
    assert own[1]["threads"] == []
    for found in own:
        assert_equal_weights(found["student"], alone["student"], 1e-10)
    assert ledger_of(tmp_path / "two") == ledger_of(tmp_path / "one")


@pytest.mark.slow
def test_sharded_weights_sample_ahead_what_whole_ones_do(tmp_path: Path) -> None:
    ahead = partial(phase_2, rollouts_ahead=1)
    (alone,) = in_ranks(ahead, tmp_path / "one", processes=1)
    for found in in_ranks(partial(with_fsdp, ahead), tmp_path / "two"):
        assert found["sharded"]
        assert_equal_weights(found["student"], alone["student"], 1e-10)
    assert ledger_of(tmp_path / "two") == ledger_of(tmp_path / "one")
