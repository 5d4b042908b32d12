"""What the tests of rollouts one step ahead share."""

import json
import threading
from pathlib import Path
from typing import Any

import torch

from distill_bench import QUESTIONS, Bench


def rows_of(folder: Path, step: int) -> list[dict[str, Any]]:
    file = folder / f"distill/rollouts/step-{step:06d}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def before_each_update(bench: Bench, action: Any) -> None:
    """Have `action(step)` called when the step's gradients are there and its weights are still the old."""
    clip = bench.trainer._clip_grad_norm

    def watched(model: Any) -> Any:
        action(bench.trainer.state.global_step)
        return clip(model)

    bench.trainer._clip_grad_norm = watched


def assert_same_weights(one: Any, other: Any) -> None:
    others = dict(other.named_parameters())
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, others[name]), name


def rows_exist(folder: Path, step: int) -> bool:
    return (folder / f"distill/rollouts/step-{step:06d}.jsonl").exists()


def assert_nothing_goes_on() -> None:
    assert {thread.name for thread in threading.enumerate()}.isdisjoint({"grading", "rollouts-ahead"})


def left_alone_in(folder: Path) -> Bench:
    """Four steps that nothing has interrupted or slowed down."""
    bench = Bench(folder, QUESTIONS[:32], rollouts_ahead=1)
    bench.train()
    return bench
