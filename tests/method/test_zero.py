"""Training with DeepSpeed's ZeRO-2 and ZeRO-3 in two processes, against one process on the same questions.

Float32: DeepSpeed steps float32 copies of the weights. Adam turns the rounding of a gradient near 0 into a
whole step of that weight, so weights are compared as a whole, by how far they moved; a lost, doubled or
misplaced gradient moves them elsewhere by a large part of the way, or shows in the gradient's norm.
"""

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_parallel_work import phase_2, srt, with_zero
from in_ranks import in_ranks
from support import read_jsonl, without_seconds

pytestmark = [
    pytest.mark.deepspeed,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None,
        reason="DeepSpeed is not installed; `make test-deepspeed` has an environment for it",
    ),
]

STAGES = pytest.mark.parametrize("stage", [2, 3])
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


def ledger_of(folder: Path) -> dict[tuple[str, str], Any]:
    rows = read_jsonl(folder / "ledger.jsonl")
    return {(row["stage"], row["key"]): without_seconds(row) for row in rows}


def responses_of(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted((folder / "distill/rollouts").glob("*.jsonl"))]


@STAGES
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sync": "never", "sync_every": None, "teacher_decay": 0.5},
    ],
    ids=["synced", "following"],
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
    work = partial(srt, micro_batch_tokens=90, gradient_checkpointing=checkpointing)
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
