"""Curves of a run, from a log and rollouts written by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sdzero.analyze.evolution import binned, evolution, hedge_shares, step_rows
from sdzero.errors import UserError
from sdzero.run_dir import RunDir


def row(step: int, **values: Any) -> dict[str, Any]:
    return {"part": 0, "step": step, "loss": 0.5, "teacher_syncs": 0} | values


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Three steps and an evaluation. Token 7 is `wait`, all others are digits."""
    made = RunDir.unlocked(tmp_path)
    for values in (
        row(1, reward=0.5, tokens=40.0, entropy=0.4),
        row(2, reward=0.7, tokens=30.0, entropy=0.2),
        {"part": 0, "step": 2, "eval_avg": 0.6},
        row(3, reward=0.9, tokens=20.0, entropy=0.1, teacher_syncs=1),
    ):
        made.append_jsonl("distill/log.jsonl", values)
    for step, responses in enumerate(([[7, 1], [1]], [[1], [2]], [[7], [7]], [[7]])):
        made.write_jsonl(
            f"distill/rollouts/step-{step:06d}.jsonl", [{"token_ids": token_ids} for token_ids in responses]
        )
    return made


def decode(token_ids: Sequence[int]) -> str:
    return " ".join("wait" if token == 7 else str(token) for token in token_ids)


def test_only_steps_are_rows(run: RunDir) -> None:
    assert [one["step"] for one in step_rows(run)] == [1, 2, 3]


def test_bins_hold_means(run: RunDir) -> None:
    first, second = evolution(run, bins=2)
    assert (first["first_step"], first["last_step"], first["steps"]) == (1, 1, 1)
    assert (second["first_step"], second["last_step"], second["steps"]) == (2, 3, 2)
    assert second["reward"] == pytest.approx(0.8)
    assert second["tokens"] == pytest.approx(25)
    assert second["entropy"] == pytest.approx(0.15)
    assert (first["teacher_syncs"], second["teacher_syncs"]) == (0, 1)
    assert second["divergence_r0"] is None
    assert second["hedge_share"] is None


def test_rollouts_are_numbered_by_the_steps_before_them(run: RunDir) -> None:
    assert hedge_shares(run, decode) == {1: 0.5, 2: 0.0, 3: 1.0, 4: 1.0}
    assert [part["hedge_share"] for part in evolution(run, decode, bins=3)] == [0.5, 0.0, 1.0]


def test_no_more_bins_than_steps_and_none_lost() -> None:
    rows = [row(step, reward=1.0) for step in range(1, 11)]
    assert len(binned(rows, 20)) == 10
    parts = binned(rows, 3)
    assert [part["steps"] for part in parts] == [3, 3, 4]
    assert [part["first_step"] for part in parts] == [1, 4, 7]
    assert binned([], 3) == []
    with pytest.raises(ValueError, match="bins"):
        binned(rows, 0)


def test_what_is_not_finite_and_what_was_not_measured_is_left_out() -> None:
    rows = [
        row(1, entropy="nan", divergence_r0=0.0, divergence_r1=0.2),
        row(2, entropy=0.3, divergence_r0=0.4, divergence_r1=0.0),
    ]
    (part,) = binned(rows, 1)
    assert (part["entropy"], part["divergence_r0"], part["divergence_r1"]) == (0.3, 0.4, 0.2)


def test_a_stage_without_a_log_is_named(tmp_path: Path) -> None:
    run = RunDir.unlocked(tmp_path)
    with pytest.raises(UserError, match="no log"):
        evolution(run)
    run.append_jsonl("distill/log.jsonl", {"part": 0, "step": 2, "eval_avg": 0.6})
    with pytest.raises(UserError, match="no steps"):
        evolution(run)


def test_a_real_run_is_read(micro_run: Path) -> None:
    parts = evolution(RunDir.unlocked(micro_run), lambda ids: "wait", bins=3)
    assert [part["steps"] for part in parts] == [2, 2, 2]
    assert [part["hedge_share"] for part in parts] == [1.0, 1.0, 1.0]
    assert all(0 < part["entropy"] < 1 for part in parts)
    assert parts[-1]["teacher_syncs"] == 2
