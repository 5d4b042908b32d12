"""Stages whose trainings are played: what they sample, whether they collapse and how they score is given.

Folders, markers, claims, the ledger and stored scores are the real ones; there is no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdzero.baselines.registry import BASELINES, Baseline
from sdzero.errors import CollapseError
from sdzero.ledger import Ledger
from sdzero.pipeline import Stages
from sdzero.questions.question import Question
from sdzero.questions.splits import QuestionSets
from sdzero.recipe import Recipe
from sdzero.run_context import Budget
from sdzero.run_dir import RunDir
from support import make_questions

COLLECTED, DISTILLED, SCORED = 30, 10, 4
"""Responses that a collection, a phase 2 and a scoring sample; each has 10 tokens."""


@dataclass
class Play:
    """What happens (`averages` by the name of the scores, `collapses` by stage), and what was asked for."""

    averages: Mapping[str, float] = field(default_factory=dict)
    collapses: dict[str, CollapseError] = field(default_factory=dict)
    checkpoint_kept: bool = True
    trained: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    budgets: dict[str, Budget] = field(default_factory=dict)
    starts: dict[str, str | None] = field(default_factory=dict)
    teachers: dict[str, str | None] = field(default_factory=dict)
    scored: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    """By folder of the scores: the model, and the ids of the questions."""


@dataclass
class FakeStages(Stages):
    """Stages that play."""

    play: Play = field(default_factory=Play)

    def train(self, name: str, settings: Any, responses: int) -> None:
        """One training: sampled, then collapsed or kept."""
        self.play.trained.append(name)
        self.play.settings[name] = settings
        self.ledger.record(name, "batch", responses=responses, sampled_tokens=10 * responses)
        if name in self.play.collapses:
            if self.play.checkpoint_kept:
                self.run.path(f"{name}/checkpoints/last-good/checkpoint-4").mkdir(parents=True, exist_ok=True)
            raise self.play.collapses[name]
        self.run.path(f"{name}/model").mkdir(parents=True)
        self.run.mark_done(name, {})

    def collect(self, round_: int, *_: Any, **__: Any) -> None:
        self.ledger.record("collect", "batch", responses=COLLECTED, sampled_tokens=10 * COLLECTED)

    def srt(self, round_: int, *_: Any, **__: Any) -> None:
        self.run.path(f"srt/round-{round_}/model").mkdir(parents=True, exist_ok=True)

    def distill(
        self,
        name: str = "distill",
        settings: Any = None,
        start: str | None = None,
        traces_of: str = "collect",
        teacher: str | None = None,
    ) -> None:
        settings = settings or self.recipe.distill
        self.claim(name, settings)
        if not self.run.is_done(name):
            self.play.starts[name] = start
            self.play.teachers[name] = teacher or settings.teacher
            self.train(name, settings, DISTILLED)

    def load(self, path: str | Path) -> Any:
        return str(path)

    def sampler(self, model: Any) -> Any:
        return SimpleNamespace(model=model, ledger=self.ledger)


def fake_stages(folder: Path, recipe: Recipe, play: Play | None = None) -> FakeStages:
    """Stages of a run in `folder`: 10 questions, of which q0-q3 are N1, q4-q7 N2, q8 tuning and q9 test."""
    questions = make_questions(10)
    run = RunDir.open(folder, recipe)
    run.close()  # nothing else works in the folder of a test
    return FakeStages(
        recipe=recipe,
        run=run,
        ledger=Ledger(run.path("ledger.jsonl")),
        tokenizer=None,
        roles=None,
        sets=QuestionSets(questions[:4], questions[4:8], questions[8:9], questions[9:]),
        grade=None,
        report=lambda line: None,
        progress=lambda what, done, total: None,
        make_engine=None,
        play=play or Play(),
    )


def play_baselines(patch: pytest.MonkeyPatch) -> None:
    """Every baseline is played on the stages that train it, and spends its whole budget."""

    def train(stages: FakeStages, name: str, settings: Any, budget: Budget) -> None:
        stages.play.budgets[name] = budget
        stages.train(name, settings, budget.amount)

    for name in BASELINES:
        patch.setitem(BASELINES, name, Baseline(name, train))


def play_scores(patch: pytest.MonkeyPatch, play: Play) -> None:
    """Every scoring of the pipeline is played: an average by the name of the scores, 0.5 if none is given."""

    def evaluate(questions: Sequence[Question], sampler: Any, settings: Any, *, folder: str, **_: Any) -> Any:
        name = folder.removeprefix("evaluate/")
        sampler.ledger.record("evaluate", name, responses=SCORED, sampled_tokens=10 * SCORED)
        play.scored[name] = (sampler.model, [question.id for question in questions])
        return {
            "evaluation": {"avg": play.averages.get(name, 0.5), "mean_tokens": 10.0},
            "revision": None,
            "per_question": {},
        }

    patch.setattr("sdzero.pipeline.evaluate", evaluate)
