"""Collapses set off their alarm, healthy runs none, and a checkpoint from before is left."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerState, TrainingArguments

from sdzero import tiny
from sdzero.errors import UserError
from sdzero.ledger import Ledger
from sdzero.method import alarms
from sdzero.method.alarms import Alarm, Alarms, StopOnCollapse
from sdzero.method.checkpoints import COMPLETE_MARKER, last_complete_checkpoint
from sdzero.method.distill import SelfDistillationTrainer
from sdzero.method.distill_config import distill_config
from sdzero.method.graded import GradedSampler
from sdzero.method.roles import Roles
from sdzero.method.teacher import Teacher
from sdzero.models import load_tokenizer
from sdzero.questions.question import Question
from sdzero.recipe import AlarmSettings, ChatSettings, PhraseSettings
from sdzero.recipe_distill import DistillSettings
from sdzero.rollout.transformers_engine import TransformersEngine
from sdzero.run_dir import RunDir
from sdzero.tiny.arithmetic import post_training_problems
from sdzero.verify.math import MathVerifier

SETTINGS = AlarmSettings(window=4)


def first_alarm(
    series: dict[str, list[float]], settings: AlarmSettings = SETTINGS
) -> tuple[str, str | None, int] | None:
    """Feed a series; measure, setting and step of the first alarm. Step k has the k-th values."""
    watch = Alarms(settings)
    for index in range(max(map(len, series.values()))):
        values = {name: own[index] for name, own in series.items() if index < len(own)}
        alarm = watch.feed(index + 1, values)
        if alarm is not None:
            return alarm.measure, alarm.setting, alarm.step
    return None


# ---- the rules; a window has 4 steps, the start is 1 step ----


@pytest.mark.parametrize(
    ("measure", "values", "setting", "step"),
    [
        # Window means 40, 30.5, 21, 11.5, 2; the limit is 4.
        ("tokens", [40, 40, 40, 40, 2, 2, 2, 2], "length_shrink", 8),
        # 40, 130, 220: the limit is 200.
        ("tokens", [40, 40, 40, 40, 400, 400, 400], "length_growth", 6),
        ("entropy", [0.1, 0.1, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0], "entropy_floor", 8),
        # 0.1, 0.575, 1.05: the limit is 1.
        ("entropy", [0.1, 0.1, 0.1, 0.1, 2.0, 2.0, 2.0], "entropy_growth", 6),
        # 0.75, 0.5625, 0.375, 0.1875: the limit is 0.375, and 0.375 is not below it.
        ("reward", [0.75, 0.75, 0.75, 0.75, 0, 0, 0, 0], "reward_drop", 7),
        # The best is the second window's, not the first one's.
        ("reward", [0.2] * 4 + [0.8] * 4 + [0.3] * 4, "reward_drop", 12),
        # Medians of the windows: 1, 1, 1, 100.5.
        ("grad_norm", [1, 1, 1, 1, 1, 200, 200, 200, 200], "gradient_growth", 7),
    ],
)
def test_a_collapse_sets_off_its_alarm(measure: str, values: list[float], setting: str, step: int) -> None:
    assert first_alarm({measure: values}) == (measure, setting, step)


@pytest.mark.parametrize(
    "series",
    [
        {"tokens": [40.0] * 6 + [20.0] * 20},  # phase 2 halves the length
        {"tokens": [40.0] * 6 + [80.0] * 20},  # SRT doubles it
        {"tokens": [40.0] * 8 + [400.0] + [40.0] * 8},  # one odd batch
        {"entropy": [0.035] * 6 + [0.007] * 20},
        {"entropy": [0.02] * 6 + [0.3] * 20},  # fifteen times as much, and still little
        {"entropy": [0.00005] * 20},  # as sure as at the start
        {"reward": [0.9] * 6 + [0.5] * 20},
        {"reward": [0.9] * 6 + [0.0] + [0.9] * 6},
        {"reward": [0.09] * 6 + [0.0] * 20},  # too little to fall from
        {"reward": [0.0] * 6 + [0.8] * 20},
        {"grad_norm": [0.2] * 10 + [500.0] + [0.2] * 10},  # a lone spike
        {"grad_norm": [1e-9] * 10 + [1e-3] * 10},  # rounding errors
        {"loss": [1.0] * 20},
    ],
)
def test_a_healthy_series_sets_off_none(series: dict[str, list[float]]) -> None:
    assert first_alarm(series) is None


def test_the_demos_course_sets_off_none_with_the_defaults() -> None:
    """The shape of a real phase 2: 94 steps, length 44 -> 23, entropy and gradient a quarter."""
    steps = [step / 93 for step in range(94)]
    wobble = [0.08 * math.sin(7 * step) for step in range(94)]
    series = {
        "reward": [0.75 + 0.2 * at + own for at, own in zip(steps, wobble, strict=True)],
        "tokens": [44 - 21 * min(1, 3 * at) for at in steps],
        "entropy": [0.035 * (1 - 0.75 * at) for at in steps],
        "grad_norm": [0.4 * (1 - 0.75 * at) * (35 if step == 60 else 1) for step, at in enumerate(steps)],
    }
    assert first_alarm(series, AlarmSettings()) is None


def test_a_collapse_in_the_first_steps_is_seen_with_the_defaults() -> None:
    """Step 1 is sampled before the first update. No window's mean is 0.1, but there were right responses."""
    assert first_alarm({"reward": [0.8] + [0.0] * 60}, AlarmSettings()) == ("reward", "reward_drop", 21)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_an_alarm_at_once(value: float) -> None:
    alarm = Alarms(SETTINGS).feed(1, {"entropy": value})
    assert alarm is not None
    assert (alarm.measure, alarm.step, alarm.setting) == ("entropy", 1, None)


def test_the_message_says_from_what_to_what_and_when() -> None:
    text = str(Alarm("reward", 63, 0.74, 0.21, "reward_drop"))
    assert text == "training collapsed: the mean reward went from 0.74 to 0.21 at step 63"


def test_settings_refuse_what_would_always_trip() -> None:
    for wrong in ({"window": 1}, {"length_growth": 1.0}, {"reward_drop": 1.0}, {"unknown": 1}):
        with pytest.raises(ValueError, match="validation error"):
            AlarmSettings.model_validate(wrong)


# ---- which checkpoint is kept ----


class Course:
    """Goes through the calls of a trainer: a log each step, a checkpoint every `every`, two kept."""

    def __init__(self, folder: Path, every: int, window: int = 4) -> None:
        self.folder, self.every = folder, every
        self.args = TrainingArguments(output_dir=str(folder), report_to=[], use_cpu=True)
        self.state = TrainerState()
        self.callback = StopOnCollapse(AlarmSettings(window=window), start="start/model")
        self.begin()

    def begin(self) -> None:
        self.callback.on_train_begin(self.args, self.state, None)

    def step(self, reward: float) -> None:
        self.state.global_step += 1
        step = self.state.global_step
        row = {"loss": 1.0, "reward": reward}
        self.state.log_history.append(row | {"step": step})
        self.callback.on_log(self.args, self.state, None, logs=row)
        if step % self.every == 0:
            self._save(step)

    def _save(self, step: int) -> None:
        checkpoint = self.folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "weights").write_text(str(step))
        for old in sorted(self.folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))[:-2]:
            alarms._remove(old)
        (checkpoint / COMPLETE_MARKER).write_text("{}")
        self.callback.on_save(self.args, self.state, None)

    def kept(self, place: str) -> list[str]:
        return sorted(path.name for path in (self.folder / place).glob("*"))


def test_a_checkpoint_is_proven_by_a_whole_window_after_it(tmp_path: Path) -> None:
    course = Course(tmp_path, every=2)
    for _ in range(5):
        course.step(0.75)
    assert (course.kept("last-good"), course.kept("candidate")) == ([], ["checkpoint-2"])
    course.step(0.75)  # steps 3 to 6 passed; 6 is saved, and waits next
    assert (course.kept("last-good"), course.kept("candidate")) == (["checkpoint-2"], ["checkpoint-6"])
    for _ in range(4):
        course.step(0.75)
    assert (course.kept("last-good"), course.kept("candidate")) == (["checkpoint-6"], ["checkpoint-10"])
    assert course.kept(".")[:2] == ["candidate", "checkpoint-10"]
    # The trainer has deleted checkpoint-6; what is kept of it is whole.
    assert not (tmp_path / "checkpoint-6").exists()
    assert (tmp_path / "last-good/checkpoint-6/weights").read_text() == "6"
    assert (tmp_path / "last-good/checkpoint-6" / COMPLETE_MARKER).exists()


@pytest.mark.parametrize("collapse", [8, 9, 10, 13, 16])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_last_good_checkpoint_is_from_before_the_collapse(
    tmp_path: Path, every: int, collapse: int
) -> None:
    """From step `collapse` on rewards are 0, so the update of the step before broke the model."""
    course = Course(tmp_path, every)
    for step in range(1, collapse + 2):
        course.step(0.75 if step < collapse else 0.0)
    with pytest.raises(UserError, match=f"at step {collapse + 2}\n") as raised:
        course.step(0.0)
    (kept,) = course.kept("last-good")
    assert int(kept[11:]) < collapse - 1
    assert raised.value.where is not None
    assert raised.value.where.endswith(f"last-good/{kept}")
    assert raised.value.todo is not None
    assert "alarms.enabled=false" in raised.value.todo
    assert "alarms.reward_drop (0.5)" in raised.value.todo


def test_without_a_proven_checkpoint_the_message_names_the_start(tmp_path: Path) -> None:
    course = Course(tmp_path, every=50)
    for reward in (0.75, 0.0, 0.0, 0.0):
        course.step(reward)
    with pytest.raises(UserError, match=r"the mean reward went from 0\.188 to 0 at step 5") as raised:
        course.step(0.0)
    assert "training began with start/model" in str(raised.value.where)


def test_a_resumed_course_takes_its_state_from_the_log(tmp_path: Path) -> None:
    whole, cut = Course(tmp_path / "whole", every=2), Course(tmp_path / "cut", every=2)
    for course in (whole, cut):
        for reward in (0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.0):
            course.step(reward)
    cut.callback = StopOnCollapse(AlarmSettings(window=4), start="start/model")
    cut.begin()
    messages = []
    for course in (whole, cut):
        course.step(0.0)  # 0.375, the limit
        with pytest.raises(UserError) as raised:
            course.step(0.0)
        messages.append(str(raised.value).replace(str(course.folder), ""))
    assert messages[0] == messages[1]
    assert "last-good/checkpoint-2" in messages[0]


def test_what_was_kept_of_steps_to_come_is_forgotten(tmp_path: Path) -> None:
    """Its files are hard links: the trainer would write them again, in place."""
    course = Course(tmp_path, every=2)
    for _ in range(10):
        course.step(0.75)
    course.state = TrainerState(global_step=8, log_history=course.state.log_history[:8])
    course.begin()
    assert (course.kept("last-good"), course.kept("candidate")) == (["checkpoint-6"], [])


def test_files_are_copied_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(alarms.os, "link", refuse)
    course = Course(tmp_path, every=2)
    course.step(0.75)
    course.step(0.75)
    assert (tmp_path / "candidate/checkpoint-2/weights").read_text() == "2"


def test_a_full_disk_is_not_taken_for_a_lack_of_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(alarms.os, "link", refuse)
    course = Course(tmp_path, every=2)
    course.step(0.75)
    with pytest.raises(OSError, match="No space"):
        course.step(0.75)
    assert course.kept("candidate") == []


def test_it_must_stand_behind_the_callback_that_marks_checkpoints(tmp_path: Path) -> None:
    course = Course(tmp_path, every=50)
    course.step(0.75)
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(ValueError, match="DeterministicCheckpoints"):
        course.callback.on_save(course.args, course.state, None)


# ---- a real training ----

QUESTIONS = [Question(p.text, p.text, str(p.answer), p.kind) for p in post_training_problems()[6:11] * 16]


@pytest.fixture
def quick_with_tiny_numbers() -> Iterator[None]:
    """As in a run: a broken model has many denormal numbers, which slow a CPU down."""
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


class Jump(TrainerCallback):
    """Sets an absurd learning rate from a step on."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.after:
            for group in kwargs["optimizer"].param_groups:
                group["lr"] = 1.0


class Kill(TrainerCallback):
    """Ends the process, as it were, in the middle of a step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 7:
            raise KeyboardInterrupt


def train(run: RunDir, jump_after: int, *more: TrainerCallback) -> None:
    """Phase 2 on questions that the embedded model is mostly right on, 4 a step."""
    tokenizer = load_tokenizer("tiny")
    model = AutoModelForCausalLM.from_pretrained(tiny.model_folder(), dtype=torch.float32)
    roles = Roles(tokenizer, PhraseSettings(), ChatSettings())
    verifier = MathVerifier()
    sampler = GradedSampler(
        TransformersEngine(model, [roles.end_token_id], tokenizer.pad_token_id),
        roles,
        lambda items: [verifier.grade(question, text) for question, text in items],
        run,
        Ledger(run.path("ledger.jsonl")),
    )
    settings = DistillSettings(
        learning_rate=1e-5,
        schedule="constant",
        batch_size=4,
        micro_batch_size=4,
        temperature=0.0,
        max_new_tokens=48,
        checkpoint_every=2,
    )
    checkpoints = run.path("distill/checkpoints")
    trainer = SelfDistillationTrainer(
        model,
        Teacher.load(tiny.model_folder(), torch.float32, "cpu"),
        distill_config(settings, checkpoints, seed=0, gradient_checkpointing=False, use_cpu=True),
        QUESTIONS,
        sampler,
        tokenizer,
        checkpoint_every=2,
    )
    for callback in (Jump(jump_after), StopOnCollapse(SETTINGS, str(tiny.model_folder())), *more):
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(checkpoints))


@pytest.mark.usefixtures("quick_with_tiny_numbers")
def test_a_real_collapse_stops_and_leaves_a_model_from_before(tmp_path: Path) -> None:
    """And so it does, at the same step, when the training was killed and resumed."""
    killed, whole = RunDir.unlocked(tmp_path / "killed"), RunDir.unlocked(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(killed, 6, Kill())
    messages = []
    for run in (killed, whole):
        with pytest.raises(UserError, match=r"training collapsed: .* at step \d+\n") as raised:
            train(run, 6)
        messages.append(str(raised.value).replace(str(run.root), ""))
    assert messages[0] == messages[1]
    checkpoint = Path(str(raised.value.where).removeprefix("the last good checkpoint is "))
    assert checkpoint.parent == whole.path("distill/checkpoints/last-good")
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] in (2, 4, 6)
    kept = AutoModelForCausalLM.from_pretrained(checkpoint)
    start = AutoModelForCausalLM.from_pretrained(tiny.model_folder())
    # A few updates at the healthy rate, and none at the absurd one.
    moved = [(a - b).abs().max().item() for a, b in zip(kept.parameters(), start.parameters(), strict=True)]
    assert 0 < max(moved) < 1e-3
    # All that a resumed training needs is there.
    assert {"optimizer.pt", "scheduler.pt", "teacher.json", "counted.json", COMPLETE_MARKER} <= {
        path.name for path in checkpoint.iterdir()
    }


@pytest.mark.usefixtures("quick_with_tiny_numbers")
def test_an_absurd_rate_from_the_first_step_names_the_model_that_training_began_with(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training collapsed") as raised:
        train(RunDir.unlocked(tmp_path), 0)
    assert f"training began with {tiny.model_folder()}" in str(raised.value.where)
