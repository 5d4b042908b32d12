"""What the tests of rollouts one step ahead share."""

import copy
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from distill_bench import QUESTIONS, Bench
from sdzero.rollout.engine import Request, Response, Sampling
from sdzero.rollout.transformers_engine import TransformersEngine


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


class EngineElsewhere(TransformersEngine):
    """Samples with a copy of the student, as an engine on other devices would, and notes in which threads.
    It reads the student's weights when they are needed, which must not be while they are trained."""

    def __init__(self, bench: Bench) -> None:
        self.student = bench.model
        end = bench.sampler.roles.end_token_id
        super().__init__(copy.deepcopy(self.student), [end], bench.tokenizer.pad_token_id)
        self.threads: list[str] = []
        self.held = 0

    @property
    def samples_elsewhere(self) -> bool:
        return True

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[tuple[int, Response]]]:
        if not requests:
            return
        self.read_weights()
        self.threads.append(threading.current_thread().name)
        yield from super().stream(requests, sampling)

    def take_weights(self, model: PreTrainedModel, steps: int = 1) -> None:
        self._weight_version += steps

    def read_weights(self) -> None:
        if self.held == self.weight_version:
            return
        assert threading.current_thread() is threading.main_thread(), "read while they are trained"
        theirs = dict(self.student.named_parameters())
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(theirs[name])
        self.held = self.weight_version
