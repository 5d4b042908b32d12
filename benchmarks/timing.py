"""Side by side: contestants take turns in one process, and the medians are compared."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

Seconds = dict[str, float]
"""What a turn took, by part; `step` is the whole."""


def alternate(
    contestants: Mapping[str, Callable[[], Seconds]], runs: int, warm_up: bool = True
) -> dict[str, list[Seconds]]:
    """Each contestant's turns in `runs` rounds; the order turns round each time.

    With `warm_up` a round that is not kept comes first.
    """
    turns: dict[str, list[Seconds]] = {name: [] for name in contestants}
    for number in range(0 if warm_up else 1, runs + 1):
        for name in list(contestants) if number % 2 else reversed(list(contestants)):
            gc.collect()
            took = contestants[name]()
            if number:
                turns[name].append(took)
    return turns


def medians(turns: Mapping[str, list[Seconds]]) -> dict[str, Seconds]:
    """The median of each part of each contestant's turns."""
    return {
        name: {part: statistics.median(turn[part] for turn in own) for part in own[0]}
        for name, own in turns.items()
    }


class StepClock(TrainerCallback):
    """Times one optimizer step of a `transformers.Trainer`: all from the first batch asked for to its log.

    What comes after, such as saving, is not in it.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._started = 0.0

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """The trainer is set up, and goes into its loop."""
        self.seconds, self._started = None, time.perf_counter()

    def on_log(self, *_: Any, **__: Any) -> None:
        """The first log after the step."""
        if self.seconds is None:
            self.seconds = time.perf_counter() - self._started
