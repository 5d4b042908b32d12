"""Rollouts one step ahead: exact resume, and what the ledger counts."""

from pathlib import Path
from typing import Any

import pytest

from ahead_bench import (
    assert_nothing_goes_on,
    assert_same_weights,
    before_each_update,
    left_alone_in,
    rows_exist,
    rows_of,
)
from distill_bench import QUESTIONS, Bench, Killed, scored_every
from sdzero.errors import CollapseError, UserError
from sdzero.method.training import StopWithoutProgress


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return left_alone_in(tmp_path_factory.mktemp("ahead") / "whole")


def die_in_an_update(bench: Bench, step: int) -> None:
    def die(current: int) -> None:
        if current == step:
            raise Killed

    before_each_update(bench, die)


def die_before_a_file(bench: Bench, step: int) -> None:
    """After the responses ahead were counted, and before they are kept."""
    write = bench.run.write_jsonl

    def dying(name: str, rows: Any) -> None:
        if name.endswith(f"step-{step:06d}.jsonl"):
            raise Killed
        write(name, rows)

    bench.run.write_jsonl = dying  # type: ignore[method-assign]


def die_in_a_checkpoint(bench: Bench, step: int) -> None:
    """After the responses ahead are kept, and before the checkpoint is whole."""
    save = bench.trainer.teacher.save

    def dying(folder: Path, **how: Any) -> None:
        assert rows_exist(bench.run.root, step)  # finished before anything of the checkpoint counts
        if folder.name == f"checkpoint-{step}":
            raise Killed
        save(folder, **how)

    bench.trainer.teacher.save = dying


RESUMED = {
    "plain": {},
    "synced and rehearsed": {
        "sync": "steps",
        "sync_every": 2,
        "rehearsal": True,
        "rehearsal_weight": 0.3,
        "rehearsal_batch_size": 4,
    },
    "solve rate": {"question_sampling": "solve_rate"},
    "two epochs": {"epochs": 2},
}


@pytest.mark.parametrize("name", RESUMED)
def test_four_steps_are_two_and_two_steps(tmp_path: Path, name: str) -> None:
    settings: dict[str, Any] = {"rollouts_ahead": 1, **RESUMED[name]}
    questions = QUESTIONS[:16] if name == "two epochs" else QUESTIONS[:32]
    whole = Bench(tmp_path / "whole", questions, **settings)
    whole.train()
    cut = Bench(tmp_path / "cut", questions, **settings)
    die_in_an_update(cut, 3)
    with pytest.raises(Killed):
        cut.train()
    cut.run.close()
    again = Bench(tmp_path / "cut", questions, **settings)
    logged = again.train()
    assert [(row["step"], row["staleness"]) for row in logged] == [(3, 1), (4, 1)]
    assert_same_ends(whole, again, 4)


@pytest.mark.parametrize(
    ("die", "step", "first_again"),
    [
        (die_in_an_update, 0, 1),
        (die_in_an_update, 1, 1),
        (die_in_an_update, 2, 3),
        (die_before_a_file, 1, 1),
        (die_before_a_file, 2, 1),
        (die_before_a_file, 3, 3),
        (die_in_a_checkpoint, 2, 1),
    ],
)
def test_wherever_it_is_killed_it_ends_the_same(
    left_alone: Bench, tmp_path: Path, die: Any, step: int, first_again: int
) -> None:
    """Checkpoints are made after steps 2 and 4."""
    cut = Bench(tmp_path / "cut", QUESTIONS[:32], rollouts_ahead=1)
    die(cut, step)
    with pytest.raises(Killed):
        cut.train()
    cut.run.close()
    again = Bench(tmp_path / "cut", QUESTIONS[:32], rollouts_ahead=1)
    assert [row["step"] for row in again.train()] == list(range(first_again, 5))
    assert_same_ends(left_alone, again, 4)


def assert_same_ends(whole: Bench, again: Bench, steps: int) -> None:
    """Weights, teacher, responses, and what the ledger has counted are the same, and nothing is beyond."""
    assert_same_weights(whole.model, again.model)
    assert again.teacher.fingerprint == whole.teacher.fingerprint
    for step in range(steps):
        assert rows_of(whole.run.root, step) == rows_of(again.run.root, step)
    for bench in (whole, again):
        assert not rows_exist(bench.run.root, steps)
        counted = bench.ledger.by_stage()["distill"]
        rows = [row for step in range(steps) for row in rows_of(bench.run.root, step)]
        assert counted["responses"] == len(rows) == 8 * steps
        assert counted["sampled_tokens"] == sum(row["sampled_tokens"] for row in rows)
    assert_nothing_goes_on()


def test_without_the_responses_of_the_old_weights_it_does_not_go_on(tmp_path: Path) -> None:
    cut = Bench(tmp_path / "cut", QUESTIONS[:32], rollouts_ahead=1)
    die_in_an_update(cut, 2)
    with pytest.raises(Killed):
        cut.train()
    cut.run.close()
    (tmp_path / "cut/distill/rollouts/step-000002.jsonl").unlink()
    again = Bench(tmp_path / "cut", QUESTIONS[:32], rollouts_ahead=1)
    with pytest.raises(UserError, match="the weights that sample them are gone"):
        again.train()
    again.run.close()


def test_after_a_collapse_the_step_that_was_begun_is_counted_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", QUESTIONS, rollouts_ahead=1)
    compute = bench.trainer.compute_loss

    def broken(*args: Any, **kwargs: Any) -> Any:
        return compute(*args, **kwargs) * (float("nan") if bench.trainer.state.global_step == 1 else 1.0)

    bench.trainer.compute_loss = broken
    with pytest.raises(CollapseError):
        bench.train()
    bench.run.close()
    assert rows_exist(tmp_path / "run", 2)
    assert not rows_exist(tmp_path / "run", 3)
    assert bench.ledger.by_stage()["distill"]["responses"] == 24
    assert_nothing_goes_on()


def test_after_an_early_stop_the_step_that_was_begun_is_counted_once(tmp_path: Path) -> None:
    scores = {1: 0.9, 2: 0.5, 3: 0.4}
    bench = Bench(
        tmp_path / "run",
        QUESTIONS,
        tuning_score=lambda step: {"avg": scores[step]},
        extra=scored_every(1),
        rollouts_ahead=1,
        checkpoint_every=1,
    )
    bench.trainer.add_callback(StopWithoutProgress(2))
    logged = [row for row in bench.train() if "loss" in row]
    assert [row["step"] for row in logged] == [1, 2, 3]
    # The end is known only after the evaluation: a fourth step's responses were sampled, and are counted.
    rows = [row for step in range(4) for row in rows_of(tmp_path / "run", step)]
    counted = bench.ledger.by_stage()["distill"]
    assert counted["responses"] == len(rows) == 32
    assert counted["sampled_tokens"] == sum(row["sampled_tokens"] for row in rows)
    assert not rows_exist(tmp_path / "run", 4)
