"""GRPO with two processes, against one process on the same questions: same responses, weights and counts."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_parallel_work import assert_equal_weights, ledger_of, with_fsdp
from grpo_parallel_work import grpo
from in_ranks import in_ranks
from support import read_jsonl

MEASURED = (
    *("step", "max_steps", "loss", "grad_norm", "learning_rate", "reward"),
    *("frac_reward_zero_std", "tokens", "truncated", "verifier_errors", "passes"),
)
"""Less `entropy` and `kl`: TRL shows the mean over micro-batches of their means over tokens, which depends on
how a batch is cut. The loss does not."""


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The step log, less the seconds."""
    rows = read_jsonl(folder / "grpo/log.jsonl")
    return [{key: row[key] for key in MEASURED if key in row} for row in rows]


def files_of(folder: Path) -> dict[str, bytes]:
    """The responses of each step."""
    return {file.name: file.read_bytes() for file in (folder / "grpo/rollouts").iterdir()}


def assert_is_that_of_one(found: list[dict[str, Any]], alone: dict[str, Any], two: Path, one: Path) -> None:
    """Both processes have the weights of one, and the files are those that one has left."""
    for own in found:
        assert_equal_weights(own["weights"], found[0]["weights"], 0.0)
        assert_equal_weights(own["weights"], alone["weights"], 1e-10)
        assert own["facts"] == alone["facts"]
    assert any(not torch.equal(alone["start"][name], weight) for name, weight in alone["weights"].items())
    assert files_of(two) == files_of(one)
    assert ledger_of(two) == ledger_of(one)
    for row, expected in zip(log_of(two), log_of(one), strict=True):
        assert row == pytest.approx(expected, rel=1e-6, abs=1e-9)
    saved = load_file(two / "grpo/model/model.safetensors")
    assert all(torch.equal(weight, found[0]["weights"][name]) for name, weight in saved.items())


def test_grpo_is_that_of_one_process(tmp_path: Path) -> None:
    """Twelve responses a step, four to a question: the second group lies in both processes. Each has two
    micro-batches. Verdicts are missing here and there, so the shares have unequal numbers of tokens."""
    one, two = tmp_path / "one", tmp_path / "two"
    work = partial(grpo, kl_weight=0.2)
    (alone,) = in_ranks(work, one, processes=1)
    both = in_ranks(work, two)
    assert_is_that_of_one(both, alone, two, one)
    rows = [row for file in sorted((two / "grpo/rollouts").iterdir()) for row in read_jsonl(file)]
    assert {"correct", "wrong", "error"} <= {row["outcome"] for row in rows}
    assert sum(row["kl"] > 1e-6 for row in read_jsonl(two / "grpo/log.jsonl")) == 2
    assert sum(row["grad_norm"] > 1e-3 for row in log_of(two)) == 3


@pytest.mark.slow
def test_three_steps_are_two_and_one(tmp_path: Path) -> None:
    """Bit for bit: micro-batches are dealt with random numbers, which each process has saved."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected, _ = in_ranks(grpo, whole)
    assert in_ranks(partial(grpo, stop_after=2), cut) == [{}, {}]
    for own in in_ranks(grpo, cut):
        assert_equal_weights(own["weights"], expected["weights"], 0.0)
    assert files_of(cut) == files_of(whole)
    assert log_of(cut) == log_of(whole)
    assert ledger_of(cut) == ledger_of(whole)


@pytest.mark.slow
@pytest.mark.parametrize("kl_weight", [0.0, 0.2])
def test_sharded_grpo_is_that_of_one_process(tmp_path: Path, kl_weight: float) -> None:
    work = partial(grpo, kl_weight=kl_weight)
    (alone,) = in_ranks(work, tmp_path / "one", processes=1)
    both = in_ranks(partial(with_fsdp, work), tmp_path / "two")
    assert all(own["sharded"] for own in both)
    assert_is_that_of_one(both, alone, tmp_path / "two", tmp_path / "one")
