"""Alarms: training that collapses is stopped, and a checkpoint from before the collapse is kept.

Each step's metrics are compared with those of the run's own start (or of its best time), over a window of
steps, so that a single odd batch stops nothing. The defaults are far from what healthy runs do. In
phase 2 the length of responses halves and the entropy sinks to a fifth; SRT doubles the length before.
In the project's own runs the entropy of a window stayed within 0.2 to 3.2 times its start and the median
gradient within 25 times the one before; the reward kept 0.65 of its best even in the ablation that shows
the Reviser false rewards.
"""

import errno
import math
import os
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sdzero.errors import CollapseError
from sdzero.method.checkpoints import COMPLETE_MARKER
from sdzero.recipe import AlarmSettings

LAST_GOOD = "last-good"
"""The folder, beside the checkpoints, of the newest one that is proven good."""
CANDIDATE = "candidate"
"""The folder of the one that waits to be proven."""
PARTIAL = "partial"
"""The folder in which a candidate is put together."""

MEASURES = ("reward", "tokens", "entropy", "grad_norm")
"""The keys of a step's metrics that are watched; a step may lack any of them."""

REWARD_NOTABLE = 0.1
"""A best reward below this says too little for a fall from it to be one."""
ENTROPY_NOTABLE = 0.5
"""Nats per token. A very sure model may become many times less sure and still write sense; below this no
growth is an alarm. Noise over a vocabulary has several nats."""
GRADIENT_NOTABLE = 1.0
"""A window whose median norm is at most this is no explosion, however small the norms before: after
convergence they are rounding errors."""


@dataclass(frozen=True)
class Alarm:
    """Which measure went `before` -> `after`, at which step, and the setting that calls this a collapse
    (None where a value is not finite)."""

    measure: str
    step: int
    before: float
    after: float
    setting: str | None

    def __str__(self) -> str:
        names = {
            "reward": "the mean reward",
            "tokens": "the mean length of responses",
            "entropy": "the entropy per token",
            "grad_norm": "the gradient norm",
        }
        return (
            f"training collapsed: {names[self.measure]} went from {self.before:.3g} to {self.after:.3g}"
            f" at step {self.step}"
        )


class Alarms:
    """Watches a training's metrics, one step at a time; holds nothing that the log does not."""

    def __init__(self, settings: AlarmSettings) -> None:
        self.settings = settings
        # A quarter of a window: what breaks in the first steps must not become what is normal.
        self._start = math.ceil(settings.window / 4)
        self._values: dict[str, list[float]] = {measure: [] for measure in MEASURES}
        self._best_reward = 0.0

    def feed(self, step: int, metrics: Mapping[str, Any]) -> Alarm | None:
        """Take one step's metrics; the alarm that they complete, or None. Missing keys are passed over.

        A value that is not finite is an alarm at once.
        """
        found: Alarm | None = None
        for measure in MEASURES:
            if measure not in metrics:
                continue
            value = float(metrics[measure])
            if not math.isfinite(value):
                before = self._values[measure][-1] if self._values[measure] else math.nan
                return Alarm(measure, step, before, value, None)
            self._values[measure].append(value)
            found = found or self._judge(measure, step)
        return found

    def _judge(self, measure: str, step: int) -> Alarm | None:
        if measure == "reward":
            return self._judge_reward(step)
        if len(self._values[measure]) < self.settings.window:
            return None
        if measure == "grad_norm":
            return self._judge_gradient(step)
        before = statistics.fmean(self._values[measure][: self._start])
        after = self._mean_of_window(measure)
        own = self.settings
        if measure == "tokens":
            if after < own.length_shrink * before:
                return Alarm(measure, step, before, after, "length_shrink")
            if after > own.length_growth * before:
                return Alarm(measure, step, before, after, "length_growth")
            return None
        if after < own.entropy_floor <= before:
            return Alarm(measure, step, before, after, "entropy_floor")
        if after > max(own.entropy_growth * before, ENTROPY_NOTABLE):
            return Alarm(measure, step, before, after, "entropy_growth")
        return None

    def _judge_reward(self, step: int) -> Alarm | None:
        if len(self._values["reward"]) < self.settings.window:
            return None
        after = self._mean_of_window("reward")
        self._best_reward = max(self._best_reward, after)
        if self._best_reward >= REWARD_NOTABLE and after < self.settings.reward_drop * self._best_reward:
            return Alarm("reward", step, self._best_reward, after, "reward_drop")
        # What breaks in the first steps leaves no good window behind. So few steps say little about the
        # level, but they do say that there were right responses, and now there is none.
        start = statistics.fmean(self._values["reward"][: self._start])
        if start >= REWARD_NOTABLE and after == 0:
            return Alarm("reward", step, start, after, "reward_drop")
        return None

    def _judge_gradient(self, step: int) -> Alarm | None:
        """Medians on both sides: a lone spike is clipped, and does no harm."""
        norms, window = self._values["grad_norm"], self.settings.window
        if len(norms) < window + self._start:
            return None
        before, after = statistics.median(norms[:-window]), statistics.median(norms[-window:])
        if after > max(self.settings.gradient_growth * before, GRADIENT_NOTABLE):
            return Alarm("grad_norm", step, before, after, "gradient_growth")
        return None

    def _mean_of_window(self, measure: str) -> float:
        return statistics.fmean(self._values[measure][-self.settings.window :])


class StopOnCollapse(TrainerCallback):
    """Raises CollapseError when an alarm goes off, and sees to it that there is a checkpoint from before.

    The trainer keeps the newest checkpoints only, and they may all be younger than the collapse. So one
    more is kept in `last-good/checkpoint-N`: the newest that is *proven*, which means that a whole window
    of steps after it passed without an alarm. The next one waits in `candidate/checkpoint-N` until it is
    proven. Both are hard links to the checkpoint's files, which take no room of their own until the
    trainer deletes the original; where the file system has no hard links, they are copies.

    Must stand behind `DeterministicCheckpoints` in the list of callbacks. `start` is the model that the
    training began with, named in the message when no checkpoint is proven yet. The alarms' state is read
    from the trainer's log, which each checkpoint holds, so a resumed run stops where an uninterrupted
    one does. Of several processes the first handles the files; all must be given the same metrics.
    """

    def __init__(self, settings: AlarmSettings, start: str | None = None) -> None:
        self._settings = settings
        self._start = start
        self._alarms = Alarms(settings)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up the state of a resumed training; forget what was kept of steps that will be made again."""
        self._alarms = Alarms(self._settings)
        for row in state.log_history:
            # `sdzero.method.training` keeps the steps so; each measure is judged by itself.
            past: Any = row.get("past", {})
            for measure, values in past.items():
                for value in values:
                    self._alarms.feed(state.global_step, {measure: value})
            if "loss" in row:
                self._alarms.feed(int(row["step"]), row)
        if not state.is_world_process_zero:
            return
        root = _output_dir(args)
        _remove(root / PARTIAL)
        for place in (LAST_GOOD, CANDIDATE):
            for step, kept in _kept(root / place):
                # Its files are those of a checkpoint that is about to be written again, in place.
                if step > state.global_step:
                    _remove(kept)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Judge a step's metrics. Raises CollapseError that says what collapsed and what is left."""
        if logs is None or "loss" not in logs:
            return
        root = _output_dir(args)
        if state.is_world_process_zero:
            self._prove(root, state.global_step - 1)
        alarm = self._alarms.feed(state.global_step, logs)
        if alarm is not None:
            raise self._error(alarm, root)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep this checkpoint as the next candidate if none is waiting."""
        if not state.is_world_process_zero:
            return
        root = _output_dir(args)
        self._prove(root, state.global_step)
        if not _kept(root / CANDIDATE):
            _keep(root / f"checkpoint-{state.global_step}", root)

    def _prove(self, root: Path, step: int) -> None:
        """All steps up to `step` passed: the candidate is proven if a window of them came after it."""
        for saved, candidate in _kept(root / CANDIDATE):
            if saved + self._settings.window > step:
                continue
            (root / LAST_GOOD).mkdir(exist_ok=True)
            # The new one is there before the old one goes: at any instant there is one.
            os.replace(candidate, root / LAST_GOOD / candidate.name)
            for older, kept in _kept(root / LAST_GOOD):
                if older < saved:
                    _remove(kept)

    def _error(self, alarm: Alarm, root: Path) -> CollapseError:
        proven = _kept(root / LAST_GOOD)
        if proven:
            where = f"the last good checkpoint is {max(proven)[1]}"
        else:
            where = (
                f"no checkpoint is old enough; training began with {self._start or 'the model it was given'}"
            )
        todo = (
            "lower learning_rate (or look at the verifier and the data) and start again in a new folder;"
            " to go on in spite of it set alarms.enabled=false"
        )
        if alarm.setting is not None:
            limit = getattr(self._settings, alarm.setting)
            todo += f", or change the limit alarms.{alarm.setting} ({limit:g})"
        return CollapseError(str(alarm), where, todo)


def alarms_for(settings: AlarmSettings | None, start: str | None = None) -> list[TrainerCallback]:
    """The callback that watches a training, or none if the alarms are off (None)."""
    return [] if settings is None else [StopOnCollapse(settings, start)]


def last_good_checkpoint(checkpoints: Path) -> Path | None:
    """The checkpoint that is kept from before a collapse, or None if none was old enough."""
    proven = _kept(checkpoints / LAST_GOOD)
    return max(proven)[1] if proven else None


def _output_dir(args: TrainingArguments) -> Path:
    assert args.output_dir is not None
    return Path(args.output_dir)


def _kept(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints under `folder` with their steps."""
    return [(int(path.name.removeprefix("checkpoint-")), path) for path in folder.glob("checkpoint-*")]


def _keep(checkpoint: Path, root: Path) -> None:
    """Make `checkpoint` the candidate; it appears there as a whole or not at all."""
    if not (checkpoint / COMPLETE_MARKER).is_file():
        raise ValueError("StopOnCollapse must stand behind DeterministicCheckpoints in the callbacks")
    partial = root / PARTIAL / checkpoint.name
    shutil.copytree(checkpoint, partial, copy_function=_link_or_copy)
    (root / CANDIDATE).mkdir(exist_ok=True)
    os.replace(partial, root / CANDIDATE / checkpoint.name)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV):
            raise
        shutil.copy2(source, target)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
