"""A training's log holds each step once, also when steps beyond the last checkpoint were made again."""

from pathlib import Path

from sdzero.run_dir import RunDir
from sdzero.step_log import StepLog
from support import read_jsonl


def steps(path: Path) -> list[tuple[int, int, float]]:
    return [(row["part"], row["step"], row["loss"]) for row in read_jsonl(path)]


def write(run: RunDir, part: int, first: int, last: int, loss: float) -> None:
    log = StepLog(run, "srt/log.jsonl", part)
    for step in range(first, last + 1):
        log.append({"step": step, "loss": loss})


def test_steps_made_again_replace_those_before(tmp_path: Path) -> None:
    run, file = RunDir.unlocked(tmp_path), tmp_path / "srt/log.jsonl"
    write(run, 0, 1, 3, loss=0.1)
    with file.open("a") as torn:
        torn.write('{"part": 0, "st')  # killed here; the last checkpoint was after step 2
    write(run, 0, 3, 4, loss=0.2)
    assert steps(file) == [(0, 1, 0.1), (0, 2, 0.1), (0, 3, 0.2), (0, 4, 0.2)]


def test_the_parts_of_a_stage_do_not_replace_each_other(tmp_path: Path) -> None:
    run, file = RunDir.unlocked(tmp_path), tmp_path / "srt/log.jsonl"
    write(run, 0, 1, 2, loss=0.1)
    write(run, 1, 1, 2, loss=0.2)
    write(run, 1, 2, 3, loss=0.3)
    assert steps(file) == [(0, 1, 0.1), (0, 2, 0.1), (1, 1, 0.2), (1, 2, 0.3), (1, 3, 0.3)]


def test_rows_of_the_same_step_stand_side_by_side(tmp_path: Path) -> None:
    """A step's evaluation is logged with the step's number."""
    log = StepLog(RunDir.unlocked(tmp_path), "srt/log.jsonl")
    for loss in (0.1, 0.2):
        log.append({"step": 1, "loss": loss})
    assert steps(tmp_path / "srt/log.jsonl") == [(0, 1, 0.1), (0, 1, 0.2)]
