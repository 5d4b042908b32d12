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
from contextlib import contextmanager, nullcontext
from typing import Any

from transformers import TrainerCallback

PARTS = ("sampling", "verifying", "teacher", "student", "heads", "backward", "optimizer", "rest")


class Split(TrainerCallback):
    """Clocks in one `SelfDistillationTrainer`; `parts` reads what the last step took, and begins anew."""

    def __init__(self, trainer: Any) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._passes_ended = 0.0
        self._clock_engine(trainer.sampler.engine)
        self._layers = {"student": trainer.model.get_decoder()}
        if trainer.teacher is not None:
            self._layers["teacher"] = trainer.teacher.model.get_decoder()
        self._clock_call(trainer, "compute_loss", "loss")
        self._clock_call(trainer, "training_step", "passes")
        trainer.add_callback(self)

    def _clock_call(self, owner: Any, name: str, part: str) -> None:
        call: Callable[..., Any] = getattr(owner, name)

        def clocked(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                with self._clocked_layers() if part == "loss" else nullcontext():
                    return call(*args, **kwargs)
            finally:
                self._passes_ended = time.perf_counter()
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

    @contextmanager
    def _clocked_layers(self) -> Iterator[None]:
        """Clocks on the layers of student and teacher for the time of the loss.

        Not longer: the engine samples faster with a student that has no hooks.
        """

        def clock(who: str, sign: int) -> Callable[..., None]:
            def look(*_: Any) -> None:
                self._seconds[who] += sign * time.perf_counter()

            return look

        handles = []
        for who, layers in self._layers.items():
            handles.append(layers.register_forward_pre_hook(clock(who, -1)))
            handles.append(layers.register_forward_hook(clock(who, 1)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """AdamW has made its step; the passes before it ended when `training_step` returned."""
        self._seconds["optimizer"] += time.perf_counter() - self._passes_ended

    def parts(self, step: float, rollout: float) -> dict[str, float]:
        """Seconds of each part of a step of `step` seconds, `rollout` of them until all was graded."""
        clocked, self._seconds = self._seconds, defaultdict(float)
        found = {
            "sampling": clocked["sampling"],
            "verifying": rollout - clocked["sampling"],
            "teacher": clocked["teacher"],
            "student": clocked["student"],
            "heads": clocked["loss"] - clocked["teacher"] - clocked["student"],
            "backward": clocked["passes"] - clocked["loss"],
            "optimizer": clocked["optimizer"],
        }
        return found | {"rest": step - sum(found.values())}
