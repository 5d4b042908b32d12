"""Where the seconds of our step go, measured from outside the package.

    sampling    in the engine
    verifying   what grading adds to that: it runs while sampling goes on, so only its tail shows
    teacher     the teacher's layers, forward
    student     the student's layers, forward
    heads       both output heads and the divergence: the rest of the loss's forward pass
    backward    the backward pass, all of it
    optimizer   clipping the gradient, and AdamW's step
    rest        building contexts and batches, writing responses and counts, logging

On a CPU a call has done its work when it returns, so clocks around calls are enough. What a step of the
package does not go through (a layer that is skipped, a pass that moves) shows up where it is done.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from transformers import TrainerCallback

PARTS = ("sampling", "verifying", "teacher", "student", "heads", "backward", "optimizer", "rest")


class Split(TrainerCallback):
    """Clocks in one `SelfDistillationTrainer`; `parts` reads what the last step took, and begins anew."""

    def __init__(self, trainer: Any) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._passes_ended = 0.0
        self._in_loss = False
        self._clock_engine(trainer.sampler.engine)
        self._clock_layers(trainer.model.get_decoder(), "student")
        if trainer.teacher is not None:
            self._clock_layers(trainer.teacher.model.get_decoder(), "teacher")
        self._clock_call(trainer, "compute_loss", "loss")
        self._clock_call(trainer, "training_step", "passes")
        trainer.add_callback(self)

    def _clock_call(self, owner: Any, name: str, part: str) -> None:
        call: Callable[..., Any] = getattr(owner, name)

        def clocked(*args: Any, **kwargs: Any) -> Any:
            started, self._in_loss = time.perf_counter(), part == "loss"
            try:
                return call(*args, **kwargs)
            finally:
                self._passes_ended, self._in_loss = time.perf_counter(), False
                self._seconds[part] += self._passes_ended - started

        setattr(owner, name, clocked)

    def _clock_engine(self, engine: Any) -> None:
        if not hasattr(engine, "stream"):
            self._clock_call(engine, "generate", "sampling")
            return
        stream: Callable[..., Iterator[Any]] = engine.stream

        def clocked(*args: Any, **kwargs: Any) -> Iterator[Any]:
            groups = stream(*args, **kwargs)
            while True:
                started = time.perf_counter()
                group = next(groups, None)
                self._seconds["sampling"] += time.perf_counter() - started
                if group is None:
                    return
                yield group

        engine.stream = clocked

    def _clock_layers(self, layers: Any, who: str) -> None:
        """The student's layers also sample: only what is called for the loss counts."""

        def enter(*_: Any) -> None:
            self._seconds[who if self._in_loss else f"{who} elsewhere"] -= time.perf_counter()

        def leave(*_: Any) -> None:
            self._seconds[who if self._in_loss else f"{who} elsewhere"] += time.perf_counter()

        layers.register_forward_pre_hook(enter)
        layers.register_forward_hook(leave)

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """AdamW has made its step; the passes before it ended when `training_step` returned."""
        self._seconds["optimizer"] += time.perf_counter() - self._passes_ended

    def parts(self, step: float, rollout: float) -> dict[str, float]:
        """Seconds of each part of a step of `step` seconds, `rollout` of them until all was graded."""
        clocked, self._seconds = self._seconds, defaultdict(float)
        found = {
            "sampling": clocked["sampling"],
            "verifying": rollout - clocked["sampling"],
            "teacher": clocked["teacher"] + clocked["teacher elsewhere"],
            "student": clocked["student"],
            "heads": clocked["loss"] - clocked["teacher"] - clocked["student"],
            "backward": clocked["passes"] - clocked["loss"],
            "optimizer": clocked["optimizer"],
        }
        return found | {"rest": step - sum(found.values())}
