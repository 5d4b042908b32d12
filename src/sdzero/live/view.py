"""The state of a run as its folder tells it: ledger, step logs, markers, manifest. Imports no torch.

Nothing in the folder is changed. The folder may be another machine's, on a disk that both see.
"""

import fcntl
import re
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sdzero.errors import UserError
from sdzero.live.plan import Work, planned_stages, work_of
from sdzero.live.tail import Tail
from sdzero.recipe import Recipe
from sdzero.recipe_io import load_recipe
from sdzero.run_dir import MANIFEST_NAME, RECIPE_NAME
from sdzero.run_lock import LOCK_NAME

RECENT = 20
"""Of how many rows speeds and means are taken: what goes on now, not what went on at the start."""
TREND = 40
"""How many steps the small curve of rewards shows."""
TREND_OF = "reward"
_LONGER = re.compile(r"round-\d+")


@dataclass(frozen=True)
class StageState:
    """A stage and whether it is done, at work, or still waiting."""

    name: str
    state: Literal["done", "now", "waiting"]


@dataclass(frozen=True)
class Speed:
    """Seconds are those of the ledger: of sampling and training, without loading and saving."""

    responses_per_second: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class RunView:
    """A run at one moment. Lengths in tokens, divergence in nats per token, times in seconds.

    `part` is what is being done (`distill/steps`), `done` of `total` `unit`s of it; `seconds_left` is of that
    part, from the speed of late. None stands for what is not known.
    """

    folder: str
    name: str
    state: Literal["running", "stopped", "finished"]
    process: int | None
    stages: tuple[StageState, ...]
    part: str
    done: int
    total: int | None
    at_most: bool
    unit: str
    seconds_left: float | None
    speed: Speed
    reward: float | None
    length: float | None
    divergence: dict[str, float]
    loss: float | None
    responses: int
    sampled_tokens: int
    trained_tokens: int
    seconds: float
    rewards: tuple[float, ...] = field(default=())


def find_run(folder: Path) -> Path:
    """The run's folder itself, or of several runs in it (seeds, a comparison) the one last at work.

    Raises UserError if there is none.
    """
    if (folder / MANIFEST_NAME).is_file():
        return folder
    runs = [file.parent for file in folder.glob(f"*/{MANIFEST_NAME}")]
    if not runs:
        raise UserError(
            "there is no run here (no manifest.json)" if folder.is_dir() else "there is no such folder",
            str(folder),
            "name a run's folder, such as runs/demo; a run makes its folder within its first seconds",
        )
    return max(runs, key=lambda run: (_changed(run / "ledger.jsonl"), _changed(run / MANIFEST_NAME)))


def holder(folder: Path) -> int | None:
    """The id of the process that works in a run's folder; 0 if it cannot be read; None if there is none."""
    try:
        with (folder / LOCK_NAME).open("rb") as file:
            try:
                # Given back at once when the file is closed; a run that starts in between tries again.
                fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                written = file.read(32).decode(errors="replace")
                return int(written) if written.isdigit() else 0
    except FileNotFoundError:
        return None
    return None


class RunReader:
    """Looks at one run again and again; each look reads only what is new."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError if the folder's recipe is missing or cannot be read."""
        self.folder = folder
        self.recipe: Recipe = load_recipe(folder / RECIPE_NAME)
        self._ledger = Tail(folder / "ledger.jsonl")
        self._counts: dict[tuple[str, str], dict[str, Any]] = {}
        self._recent: deque[tuple[str, dict[str, Any]]] = deque(maxlen=RECENT)
        self._logs: dict[str, _StepTail] = {}
        self._last_part = ""

    def look(self) -> RunView:
        """The state of the run now."""
        self._read()
        process = holder(self.folder)
        finished = process is None and (self.folder / "results.json").is_file()
        stages = self._stages(process is not None)
        now = next((stage.name for stage in stages if stage.state == "now"), "")
        log = self._logs.get(now)
        sampled = self._responses_by_part()
        part, done, work = self._part(now, log, sampled)
        rows = list(log.rows) if log is not None else []
        divergence = {
            key: value
            for key in ("divergence_r0", "divergence_r1")
            if (value := _mean_of(rows, key)) is not None
        }
        total = [sum(float(row.get(key) or 0) for row in self._counts.values()) for key in _TOTALS]
        return RunView(
            folder=str(self.folder),
            name=self.recipe.name,
            state="finished" if finished else "running" if process is not None else "stopped",
            process=process or None,
            stages=tuple(stages),
            part=part,
            done=done,
            total=None if work is None else work.total,
            at_most=work is not None and work.at_most,
            unit="responses" if work is None else work.unit,
            seconds_left=self._seconds_left(part, done, work, log) if process is not None else None,
            speed=self._speed(now, rows),
            reward=_mean_of(rows, TREND_OF),
            length=_mean_of(rows, "tokens"),
            divergence=divergence,
            loss=_mean_of(rows, "loss"),
            responses=int(total[0]),
            sampled_tokens=int(total[1]),
            trained_tokens=int(total[2]),
            seconds=total[3],
            rewards=tuple(log.trend) if log is not None else (),
        )

    # ---- reading ----

    def _read(self) -> None:
        rows = self._ledger.read()
        if self._ledger.started_over:
            self._counts.clear()
            self._recent.clear()
        for row in rows:
            stage, key = str(row.get("stage", "")), str(row.get("key", ""))
            self._counts[stage, key] = row
            self._last_part = _part_of(stage, key)
            self._recent.append((self._last_part, row))
        for file in [*self.folder.glob("*/log.jsonl"), *self.folder.glob("*/*/log.jsonl")]:
            stage = str(file.parent.relative_to(self.folder))
            self._logs.setdefault(stage, _StepTail(file)).look()

    def _is_done(self, stage: str) -> bool:
        if stage.startswith("evaluate/"):
            return (self.folder / f"{stage}.json").is_file()
        return (self.folder / "stages" / f"{stage}.json").is_file()

    def _stages(self, running: bool) -> list[StageState]:
        """The planned stages, and others that the folder has (baselines of a comparison)."""
        names = planned_stages(self.recipe)
        seen = [_stage_of(_part_of(*key)) for key in self._counts]
        names += [one for one in dict.fromkeys([*seen, *self._logs]) if one and one not in names]
        done = {name: self._is_done(name) for name in names}
        now = ""
        if running or not (self.folder / "results.json").is_file():
            last = self._latest_stage()
            left = [name for name in names if not done[name]]
            now = last if last and not done.get(last, True) else next(iter(left), "")
        return [
            StageState(name, "now" if name == now else "done" if done[name] else "waiting") for name in names
        ]

    def _latest_stage(self) -> str:
        """Of the ledger's last line and the step logs, the stage that was written of last."""
        times = {stage: _changed(log.tail.path) for stage, log in self._logs.items()}
        newest = max(times, key=lambda stage: times[stage], default="")
        if newest and times[newest] >= _changed(self._ledger.path):
            return newest
        return _stage_of(self._last_part)

    # ---- what is shown ----

    def _responses_by_part(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for (stage, key), row in self._counts.items():
            part = _part_of(stage, key)
            found[part] = found.get(part, 0) + int(row.get("responses") or 0)
        return found

    def _part(
        self, stage: str, log: "_StepTail | None", sampled: dict[str, int]
    ) -> tuple[str, int, Work | None]:
        """What is being done of a stage, how far it is, and how much there is in all."""
        if not stage:
            return "", 0, None
        if log is not None and log.rows and "step" in log.rows[-1]:
            last = log.rows[-1]
            return f"{stage}/steps", int(last["step"]), Work("steps", int(last.get("max_steps") or 0))
        part = self._last_part if _stage_of(self._last_part) == stage else stage
        return part, sampled.get(part, 0), work_of(self.recipe, part, sampled)

    def _seconds_left(self, part: str, done: int, work: Work | None, log: "_StepTail | None") -> float | None:
        if work is None or not work.total:
            return None
        left = max(work.total - done, 0)
        if work.unit == "steps":
            each = log.seconds_of_a_step() if log is not None else None
        else:
            rows = [row for name, row in self._recent if name == part and row.get("responses")]
            count = sum(int(row["responses"]) for row in rows)
            each = sum(float(row.get("seconds") or 0) for row in rows) / count if count else None
        return None if each is None else left * each

    def _speed(self, stage: str, rows: Sequence[dict[str, Any]]) -> Speed:
        """Of sampling if the stage samples, else (SRT and the like) of training, in tokens of the loss."""
        own = [row for part, row in self._recent if _stage_of(part) == stage]
        sampling = [row for row in own if row.get("responses")]
        counted = sampling or [row for row in own if row.get("trained_tokens")]
        seconds = sum(float(row.get("seconds") or 0) for row in counted)
        if seconds <= 0:
            return Speed()
        key = "sampled_tokens" if sampling else "trained_tokens"
        responses = sum(int(row["responses"]) for row in sampling)
        return Speed(
            responses_per_second=responses / seconds if sampling else None,
            tokens_per_second=sum(int(row.get(key) or 0) for row in counted) / seconds,
        )


_TOTALS = ("responses", "sampled_tokens", "trained_tokens", "seconds")


class _StepTail:
    """The last steps of one training, and when they were seen."""

    def __init__(self, path: Path) -> None:
        self.tail = Tail(path)
        self.rows: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self.trend: deque[float] = deque(maxlen=TREND)
        self._seen: deque[tuple[float, int]] = deque(maxlen=RECENT)

    def look(self) -> None:
        rows = [row for row in self.tail.read() if "loss" in row]
        if self.tail.started_over:
            self.rows.clear()
            self.trend.clear()
            self._seen.clear()
        for row in rows:
            if self.rows and row.get("part") != self.rows[-1].get("part"):
                self._seen.clear()  # the next part of the stage counts its steps anew
            self.rows.append(row)
            reward = row.get(TREND_OF)
            if isinstance(reward, int | float):
                self.trend.append(float(reward))
        if rows:
            self._seen.append((time.monotonic(), int(rows[-1].get("step", 0))))

    def seconds_of_a_step(self) -> float | None:
        """As the log has it (rollout and update), else as it was seen between two looks."""
        logged = [
            float(row["rollout_seconds"]) + float(row["update_seconds"])
            for row in self.rows
            if "rollout_seconds" in row and "update_seconds" in row
        ]
        if logged:
            return statistics.fmean(logged)
        if len(self._seen) < 2 or self._seen[-1][1] <= self._seen[0][1]:
            return None
        (first, step), (last, last_step) = self._seen[0], self._seen[-1]
        return (last - first) / (last_step - step)


def _part_of(stage: str, key: str) -> str:
    """The part of a run that a line of the ledger counts; updates have keys of their own."""
    return key.rpartition("/")[0] if "/" in key else stage


def _stage_of(part: str) -> str:
    """The stage that a part belongs to: `collect/round-1/initial` is of `collect/round-1`."""
    names = part.split("/")
    longer = len(names) > 1 and (names[0] == "evaluate" or _LONGER.fullmatch(names[1]))
    return "/".join(names[: 2 if longer else 1])


def _mean_of(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if isinstance(row.get(key), int | float)]
    return statistics.fmean(values) if values else None


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0
