"""What the tests of training under DeepSpeed run in each process."""

import gc
import os
import weakref
from pathlib import Path
from typing import Any

import torch

from data_parallel_work import tiny_model, weights_of
from distill_bench import QUESTIONS, Bench, perturbed, scored_every
from sdzero import ranks
from sdzero.errors import UserError
from sdzero.method import objectives, srt
from sdzero.method.distill import SelfDistillationTrainer
from sdzero.method.training import StopWithoutProgress


def with_zero(stage: int, work: Any, *arguments: Any, **keywords: Any) -> dict[str, Any]:
    """The same with DeepSpeed's ZeRO, as `accelerate launch` sets it up, on a CPU."""
    os.environ.update(
        {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
            "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
            "DS_ACCELERATOR": "cpu",
        }
    )
    return dict(work(*arguments, **keywords))


def in_chunks(work: Any, *arguments: Any, **keywords: Any) -> dict[str, Any]:
    """The same with logits of a few tokens at a time, as with large vocabularies."""
    objectives.LOGITS_AT_A_TIME = srt.LOGITS_AT_A_TIME = 1000
    return dict(work(*arguments, **keywords))


def and_lets_go(work: Any, *arguments: Any, **keywords: Any) -> dict[str, Any]:
    """The same, and whether the optimizer's state is gone when the training is over."""
    made: list[Any] = []
    prepare = srt.SRTTrainer._prepare_for_training

    def noted(self: Any, *own: Any) -> Any:
        prepared = prepare(self, *own)
        made.append(weakref.ref(self.deepspeed.optimizer))
        return prepared

    srt.SRTTrainer._prepare_for_training = noted  # type: ignore[method-assign]
    found = dict(work(*arguments, **keywords))
    gc.collect()
    return found | {"made": len(made), "kept": sum(one() is not None for one in made)}


def fails_on(rank: int, work: Any, *arguments: Any, **keywords: Any) -> dict[str, Any]:
    """One process fails in its second step, while the other waits for its weights or gradients."""
    share = SelfDistillationTrainer._share_of_loss

    def failing(self: Any, *own: Any) -> Any:
        if ranks.rank() == rank and self.state.global_step == 1:
            raise UserError("the disk of this one is full", "here", "make room")
        return share(self, *own)

    SelfDistillationTrainer._share_of_loss = failing  # type: ignore[method-assign]
    return dict(work(*arguments, **keywords))


def best_model(folder: Path) -> dict[str, Any]:
    """A training whose tuning score falls from the first step on: the first step's model is taken back."""
    scored: list[int] = []

    def score(step: int) -> dict[str, float]:
        scored.append(step)
        return {"avg": 1.0 / step}

    bench = Bench(
        folder,
        QUESTIONS,
        teacher=perturbed(tiny_model(torch.float32)),
        tuning_score=score,
        extra=scored_every(1),
        batch_size=4,
        micro_batch_size=2,
        checkpoint_every=1,
    )
    bench.trainer._patience = 2
    bench.trainer.add_callback(StopWithoutProgress(2))
    bench.train()
    return {"student": weights_of(bench.model), "scored": scored}
