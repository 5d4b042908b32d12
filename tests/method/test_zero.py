"""Training with DeepSpeed's ZeRO-2 and ZeRO-3 in two processes, against one process on the same questions.

Float32: DeepSpeed steps float32 copies of the weights. Adam turns the rounding of a gradient near 0 into a
whole step of that weight, so weights are compared as a whole, by how far they moved; a lost, doubled or
misplaced gradient moves them elsewhere by a large part of the way, or shows in the gradient's norm.
"""

import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_parallel_work import ledger_of, phase_2, srt
from in_ranks import in_ranks
from sdzero import tiny
from sdzero.errors import UserError
from sdzero.method.zero_training import check_checkpoint
from sdzero.recipe_lora import LoraSettings
from support import environment, micro_recipe, sdzero
from zero_work import and_lets_go, best_model, fails_on, in_chunks, with_zero

pytestmark = [
    pytest.mark.deepspeed,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None,
        reason="DeepSpeed is not installed; `make test-deepspeed` has an environment for it",
    ),
]

STAGES = pytest.mark.parametrize("stage", [2, 3])
ZERO_3 = {"ZERO_STAGE": "3", "ZERO3_INIT": "false"}
Found = dict[str, Any]
OF_THE_WAY = 1e-3
"""How far apart two trained models may be, as a part of how far they have moved."""

phase_2 = partial(phase_2, dtype=torch.float32)
srt = partial(srt, dtype=torch.float32)


def flat(weights: Found) -> torch.Tensor:
    return torch.cat([weights[name].double().flatten() for name in sorted(weights)])


def assert_like(found: Found, expected: Found, start: Found) -> None:
    assert found.keys() == expected.keys() == start.keys()
    moved = (flat(expected) - flat(start)).norm()
    assert moved > 0
    assert (flat(found) - flat(expected)).norm() < OF_THE_WAY * moved


def assert_same(found: Found, expected: Found) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def responses_of(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted((folder / "distill/rollouts").glob("*.jsonl"))]


@STAGES
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sync": "never", "sync_every": None, "teacher_decay": 0.5},
        {"packed": True},
    ],
    ids=["synced", "following", "packed"],
)
def test_phase_2_is_that_of_one_process(tmp_path: Path, stage: int, changes: Found) -> None:
    """Two micro-batches a process and rehearsal apart: four backward passes a step, and the last batch is of
    two questions. The gradient is clipped in the first step."""
    work = partial(phase_2, **changes)
    (alone,) = in_ranks(work, tmp_path / "one", processes=1)
    first, second = in_ranks(partial(with_zero, stage, work), tmp_path / "two")
    for who in ("student", "teacher"):
        assert_same(first[who], second[who])
        assert_like(first[who], alone[who], alone["start" if who == "student" else "teacher_start"])
    assert first["syncs"] == second["syncs"] == alone["syncs"]
    for own in (first, second):
        assert own["sharded"]
        for row, expected in zip(own["metrics"], alone["metrics"], strict=True):
            assert row == pytest.approx(expected, rel=1e-4)
    assert alone["metrics"][0]["grad_norm"] > 1.0, "it was clipped"
    assert ledger_of(tmp_path / "two") == ledger_of(tmp_path / "one")
    assert responses_of(tmp_path / "two") == responses_of(tmp_path / "one")


@STAGES
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "recomputed"])
def test_srt_is_that_of_one_process(tmp_path: Path, stage: int, checkpointing: bool) -> None:
    """Nine sequences in batches of 4, in parts: to the last batch of one, a process has nothing to give."""
    work = partial(srt, micro_batch_tokens=30, gradient_checkpointing=checkpointing)
    (alone,) = in_ranks(work, tmp_path / "one", processes=1)
    first, second = in_ranks(partial(with_zero, stage, work), tmp_path / "two")
    assert first["sharded"]
    assert_same(first["student"], second["student"])
    assert_like(first["student"], alone["student"], alone["start"])
    assert first["steps"] == alone["steps"] == 3
    saved = load_file(tmp_path / "two/model/model.safetensors")
    assert saved.keys() == load_file(tmp_path / "one/model/model.safetensors").keys()
    assert all(torch.equal(saved[name], first["student"][name]) for name in saved)
    assert ledger_of(tmp_path / "two") == ledger_of(tmp_path / "one")
    for key in ("loss", "grad_norm"):
        found, expected = ([row[key] for row in own["metrics"]] for own in (first, alone))
        assert found == pytest.approx(expected, rel=1e-4)
    assert first["forward"] == second["forward"] == alone["forward"] == "the model's own"


@STAGES
def test_three_steps_are_two_and_one(tmp_path: Path, stage: int) -> None:
    """Stopped after two steps, with the teacher synced in between, and gone on with: bit for bit."""
    work = partial(with_zero, stage, phase_2)
    expected, _ = in_ranks(work, tmp_path / "whole")
    cut = in_ranks(partial(with_zero, stage, partial(phase_2, stop_after=2)), tmp_path / "cut")
    assert [row["step"] for row in cut[0]["reported"]] == [1, 2]
    resumed = in_ranks(work, tmp_path / "cut")
    for own in resumed:
        assert_same(own["student"], expected["student"])
        assert_same(own["teacher"], expected["teacher"])
    assert [row["step"] for row in resumed[0]["metrics"]] == [3]
    assert ledger_of(tmp_path / "cut") == ledger_of(tmp_path / "whole")


@STAGES
def test_a_head_of_its_own_and_logits_in_chunks(tmp_path: Path, stage: int) -> None:
    """The head's weights are read outside of its layer, in the forward pass and in the backward pass."""
    work = partial(in_chunks, partial(srt, tied=False))
    (alone,) = in_ranks(work, tmp_path / "one", processes=1)
    first, second = in_ranks(partial(with_zero, stage, partial(and_lets_go, work)), tmp_path / "two")
    assert "lm_head.weight" in first["student"]
    assert_same(first["student"], second["student"])
    assert_like(first["student"], alone["student"], alone["start"])
    assert (first["made"], first["kept"]) == (1, 0), "the optimizer's state is let go"


def test_a_divergence_in_two_passes_and_a_policy_gradient(tmp_path: Path) -> None:
    work = partial(in_chunks, partial(phase_2, token_share=0.5, policy_gradient_weight=0.3))
    (alone,) = in_ranks(work, tmp_path / "one", processes=1)
    first, _ = in_ranks(partial(with_zero, 3, work), tmp_path / "two")
    assert_like(first["student"], alone["student"], alone["start"])
    for row, expected in zip(first["metrics"], alone["metrics"], strict=True):
        assert row == pytest.approx(expected, rel=1e-4)


def test_bfloat16_is_stepped_in_float32(tmp_path: Path) -> None:
    """ZeRO-2 and ZeRO-3 agree to one rounding; both stay near the training in float32."""
    (exact,) = in_ranks(phase_2, tmp_path / "one", processes=1)
    two, three = (
        in_ranks(partial(with_zero, stage, partial(phase_2, dtype=torch.bfloat16)), tmp_path / str(stage))[0]
        for stage in (2, 3)
    )
    for own in (two, three):
        assert {weight.dtype for weight in own["student"].values()} == {torch.bfloat16}
        for row, expected in zip(own["metrics"], exact["metrics"], strict=True):
            assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.1)
            assert row["loss"] == pytest.approx(expected["loss"], rel=0.1)
    difference = flat(two["student"]) - flat(three["student"])
    assert difference.norm() < 0.01 * (flat(two["student"]) - flat(two["start"])).norm()


@STAGES
def test_the_best_model_is_taken_back(tmp_path: Path, stage: int) -> None:
    """At the end, and when the same command finds a training that had ended but for keeping its model."""
    work = partial(with_zero, stage, best_model)
    first, second = in_ranks(work, tmp_path / "run")
    assert first["scored"] == [1, 2, 3]
    best = load_file(tmp_path / "run/distill/checkpoints/checkpoint-1/model.safetensors")
    again, _ = in_ranks(work, tmp_path / "run")
    assert again["scored"] == []
    for found in (first, second, again):
        assert all(torch.equal(weight, best[name]) for name, weight in found["student"].items())


@STAGES
@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_process_fails_the_other_stops(tmp_path: Path, stage: int, rank: int) -> None:
    found = in_ranks(
        partial(with_zero, stage, partial(fails_on, rank, phase_2)),
        tmp_path / "run",
        errors=tmp_path / "errors",
    )
    assert "the disk of this one is full" in str(found[rank])
    assert isinstance(found[1 - rank], Exception | SystemExit), "the other one did not go on"
    printed = (tmp_path / "errors").read_text() + str(found[1 - rank])
    assert f"process {rank} failed: the disk of this one is full" in printed


def test_a_checkpoint_is_gone_on_with_as_it_was_written(tmp_path: Path) -> None:
    """The optimizer's state is in its owners' files, so DeepSpeed it was and DeepSpeed it stays."""
    stopped = partial(phase_2, stop_after=2)
    in_ranks(partial(with_zero, 2, stopped), tmp_path / "zero")
    in_ranks(stopped, tmp_path / "ddp")
    checkpoint = tmp_path / "zero/distill/checkpoints/checkpoint-2"
    with pytest.raises(UserError, match=r"written by 2 processes.*there are 1 now"):
        check_checkpoint(checkpoint)
    for work, folder, message in (
        (phase_2, "zero", "was written under DeepSpeed"),
        (partial(with_zero, 2, phase_2), "ddp", "was not written under DeepSpeed"),
    ):
        found = in_ranks(work, tmp_path / folder)
        assert all(isinstance(own, UserError | SystemExit) for own in found)
        assert any(message in str(own) for own in found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": torch.float64}, "these are float64"),
        ({"optimizer": "adamw_8bit"}, "adamw_8bit is not supported"),
        ({"lora": LoraSettings(rank=4, alpha=8)}, "adapters are not trained"),
    ],
    ids=["float64", "8 bits", "adapters"],
)
def test_what_zero_cannot_train_is_refused(tmp_path: Path, changes: Found, message: str) -> None:
    found = in_ranks(partial(with_zero, 2, partial(phase_2, **changes)), tmp_path / "run")
    assert all(isinstance(own, UserError | SystemExit) for own in found)
    assert any(message in str(own) for own in found)


def test_a_whole_run_of_two_processes(micro_run: Path, tmp_path: Path) -> None:
    """By the command: each stage loads a whole model, trains it, and keeps it whole for the next."""
    shards = {f"ACCELERATE_DEEPSPEED_{key}": value for key, value in ZERO_3.items()}
    env = environment() | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_DEEPSPEED": "true"} | shards
    arguments: list[str | Path] = [
        "run",
        micro_recipe(tmp_path),
        "-o",
        tmp_path / "run",
        "--num-processes",
        "2",
    ]
    done = sdzero(*arguments, env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "eprecat" not in done.stderr, "nothing that DeepSpeed would tell its own developers"
    name = "srt/round-1/model/model.safetensors"
    base = load_file(tiny.model_folder() / "model.safetensors")
    found, expected = load_file(tmp_path / "run" / name), load_file(micro_run / name)
    assert_like(found, expected, {key: base[key] for key in expected})
    results = [json.loads((own / "results.json").read_text()) for own in (tmp_path / "run", micro_run)]
    assert results[0]["budget"]["responses"] == results[1]["budget"]["responses"]
    assert results[0]["evaluations"].keys() == results[1]["evaluations"].keys()
