"""Damaged files are named and refused; of checkpoints the last good one is used."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill_bench import QUESTIONS, Bench
from sdzero.checksums import find_damage, take_sums
from sdzero.errors import UserError
from sdzero.kept_models import check_kept_model, sums_of_model
from sdzero.method.checkpoints import last_complete_checkpoint
from sdzero.method.graded import Draw
from sdzero.rollout.engine import Sampling
from sdzero.run_dir import RunDir
from sdzero.step_log import StepLog
from support import Bench as SamplerBench
from support import make_questions

SETTINGS: dict[str, Any] = {
    "batch_size": 4,
    "micro_batch_size": 4,
    "max_new_tokens": 12,
    "checkpoint_every": 2,
}


class KilledError(Exception):
    """Stands for a process that ends at once."""


def make_bench(
    folder: Path, killed_at: int | None = None, after_step: Callable[[int], None] | None = None
) -> Bench:
    """Phase 2 in six steps, with a checkpoint every two; killed when it reports a step."""
    bench = Bench(folder, QUESTIONS[:24], **SETTINGS)

    def report(values: dict[str, Any]) -> None:
        if after_step is not None:
            after_step(values["step"])
        if values["step"] == killed_at:
            raise KilledError

    for callback in bench.trainer.callback_handler.callbacks:
        if type(callback).__name__ == "PlainLog":
            callback._report = report
    return bench


def weights_after(bench: Bench) -> dict[str, torch.Tensor]:
    bench.train()
    return {name: value.clone() for name, value in bench.model.state_dict().items()}


def kill(bench: Bench) -> None:
    with pytest.raises(KilledError):
        bench.train()
    bench.run.close()


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return weights_after(make_bench(tmp_path_factory.mktemp("alone") / "run"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its fifth step, with checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    kill(make_bench(folder, killed_at=5))
    return folder


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("model.safetensors", cut_short, "cut short"),
        ("optimizer.pt", flip_a_bit, "has changed"),
        ("counted.json", Path.unlink, "missing"),
        ("complete.json", cut_short, "no JSON object"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    killed: Path,
    left_alone: dict[str, torch.Tensor],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], None],
    told: str,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(killed, run)
    checkpoints = run / "distill/checkpoints"
    damage(checkpoints / "checkpoint-4" / name)
    with caplog.at_level(logging.WARNING):
        found = last_complete_checkpoint(checkpoints)
    assert found == str(checkpoints / "checkpoint-2")
    assert f"{checkpoints}/checkpoint-4/{name} is damaged: " in caplog.text
    assert told in caplog.text
    assert f"training goes on from {checkpoints}/checkpoint-2" in caplog.text
    assert (checkpoints / "damaged-checkpoint-4").is_dir()
    if name == "optimizer.pt":  # once is enough: what is trained on from is the same
        assert_equal(weights_after(make_bench(run)), left_alone)


def test_with_no_whole_checkpoint_the_run_says_what_to_remove(
    killed: Path, left_alone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(killed, run)
    checkpoints = run / "distill/checkpoints"
    for step in (2, 4):
        flip_a_bit(checkpoints / f"checkpoint-{step}/scheduler.pt")
    for _ in range(2):  # it is no beginning from nothing the second time
        with pytest.raises(UserError, match="no checkpoint of this training is whole") as told:
            last_complete_checkpoint(checkpoints)
        assert told.value.todo is not None
        assert f"remove {checkpoints}" in told.value.todo
    shutil.rmtree(checkpoints)
    assert_equal(weights_after(make_bench(run)), left_alone)


def test_a_clock_that_goes_back_changes_nothing(
    left_alone: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what time.time says nor the times of the checkpoints: each is older than the one before."""
    now = [4e9]

    def backwards() -> float:
        now[0] -= 1000.0
        return now[0]

    def age(step: int) -> None:
        for checkpoint in run.glob("distill/checkpoints/checkpoint-*"):
            at = 2e9 - 1000.0 * int(checkpoint.name.rpartition("-")[2])
            os.utime(checkpoint, (at, at))

    run = tmp_path / "run"
    monkeypatch.setattr(time, "time", backwards)
    kill(make_bench(run, killed_at=5, after_step=age))
    kept = sorted(path.name for path in run.glob("distill/checkpoints/checkpoint-*"))
    assert kept == ["checkpoint-2", "checkpoint-4"]
    age(0)
    resumed = make_bench(run, after_step=age)
    assert_equal(weights_after(resumed), left_alone)
    kept = sorted(path.name for path in run.glob("distill/checkpoints/checkpoint-*"))
    assert kept == ["checkpoint-4", "checkpoint-6"], "the newest by their steps"
    seconds = [row["seconds"] for row in map(json.loads, (run / "ledger.jsonl").read_text().splitlines())]
    assert all(0 <= one < 900 for one in seconds)


# ---- the models that stages keep ----


def run_with_model(root: Path) -> RunDir:
    run = RunDir.unlocked(root)
    folder = run.path("srt/round-1/model")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "config.json").write_text("{}")
    run.mark_done("srt/round-1", {"sequences": 3}, sums_of_model(run, "srt/round-1"))
    return run


def test_a_kept_model_is_checked_against_its_stage_marker(tmp_path: Path) -> None:
    run = run_with_model(tmp_path)
    folder = run.path("srt/round-1/model")
    check_kept_model(run, folder)
    (folder / "README.md").write_text("what came later does not matter")
    check_kept_model(run, folder)
    check_kept_model(run, tmp_path.parent / "model")
    assert run.stage_info("srt/round-1") == {"sequences": 3}
    for damage, told in ((flip_a_bit, "has changed"), (cut_short, "cut short"), (Path.unlink, "is missing")):
        damage(folder / "model.safetensors")
        with pytest.raises(UserError, match=told) as error:
            check_kept_model(run, folder)
        assert error.value.where == str(folder / "model.safetensors")
        assert f"remove {folder} and {tmp_path}/stages/srt/round-1.json" in str(error.value.todo)


def test_every_file_has_a_sum_and_every_change_shows(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/one").write_bytes(b"one")
    (tmp_path / "empty").write_bytes(b"")
    sums = take_sums(tmp_path)
    assert sums["empty"] == {
        "bytes": 0,
        "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
    assert find_damage(tmp_path, sums) is None
    (tmp_path / "below/one").write_bytes(b"One")
    damage = find_damage(tmp_path, sums)
    assert damage is not None
    assert damage.file == tmp_path / "below/one"


# ---- batches and logs ----


def sample_batch(bench: SamplerBench) -> Any:
    draws = [Draw(q, tuple(bench.roles.generator_prompt(q)), seed=1) for q in make_questions(3)]
    return bench.sampler.batch(draws, Sampling(0.0, 32), "collect/batch-00000.jsonl", "collect")


@pytest.mark.parametrize(
    ("damage", "line", "told"),
    [
        (lambda text: text[:-9], 3, "it ends within a line"),
        (lambda text: text.replace('"token_ids"', "token_ids", 1), 1, "damaged"),
        (lambda text: text.replace('"token_ids"', '"token_odd"', 1), 1, "is no response"),
        (
            lambda text: "".join(f"{row}\n" for row in [*text.splitlines()[:1], "[]", "{}"]),
            2,
            "is no response",
        ),
    ],
)
def test_a_damaged_batch_is_told_with_its_line_and_sampled_again_once_removed(
    tmp_path: Path, damage: Callable[[str], str], line: int, told: str
) -> None:
    bench = SamplerBench(tmp_path, lambda prompt, asked: f"right {prompt[-20:]}")
    first = sample_batch(bench)
    file = tmp_path / "collect/batch-00000.jsonl"
    whole = file.read_text()
    file.write_text(damage(whole))
    with pytest.raises(UserError, match=told) as error:
        sample_batch(bench)
    assert error.value.where == f"{file}: line {line}"
    assert "or remove it: the same command samples its responses again" in str(error.value.todo)
    file.unlink()
    assert sample_batch(bench) == first
    assert file.read_text() == whole


def test_a_damaged_step_log_is_told_with_its_line(tmp_path: Path) -> None:
    run = RunDir.unlocked(tmp_path)
    log = StepLog(run, "log.jsonl")
    for step in (1, 2):
        log.append({"step": step})
    file = tmp_path / "log.jsonl"
    file.write_text(file.read_text().replace('"step": 1', '"step"= 1'))
    with pytest.raises(UserError, match="the log of a training is damaged") as error:
        StepLog(run, "log.jsonl").append({"step": 2})
    assert error.value.where == f"{file}: line 1"
