"""What the tests of rollouts one step ahead with several processes run in each of them."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from data_parallel_work import tiny_model, weights_of
from distill_bench import QUESTIONS, Bench, perturbed
from sdzero.rollout.engine import Request, Response, Sampling
from sdzero.rollout.transformers_engine import TransformersEngine


class EngineElsewhere(TransformersEngine):
    """Samples with a model of its own, as a server does, and notes in which thread it was asked to."""

    def __init__(self, student: PreTrainedModel, *args: Any) -> None:
        super().__init__(tiny_model(), *args)
        self.student = student  # begins with the same weights
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


def sampled_elsewhere(folder: Path) -> dict[str, Any]:
    """Three steps whose responses an engine of its own samples, while the step before is updated."""
    bench = Bench(
        folder,
        QUESTIONS[:10],
        teacher=perturbed(tiny_model()),
        dtype=torch.float64,
        batch_size=4,
        micro_batch_size=1,
        rollouts_ahead=1,
    )
    roles, pad = bench.sampler.roles, bench.tokenizer.pad_token_id
    engine = EngineElsewhere(bench.model, [roles.end_token_id], pad)
    bench.sampler.engine = engine
    bench.train()
    return {"student": weights_of(bench.model), "threads": engine.threads}
