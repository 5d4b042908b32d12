"""What a study is: which models it trains beside SD-Zero's own, and what it asks of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdzero.pipeline import Stages
from sdzero.questions.question import Question
from sdzero.recipe import Recipe
from sdzero.recipe_base import OptimizerSettings
from sdzero.recipe_distill import DistillSettings
from sdzero.run_context import Report

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Chosen:
    """The settings of methods at the rates that a comparison has found, or at the recipe's."""

    distill: DistillSettings
    baselines: Mapping[str, OptimizerSettings]
    """Of the baselines that have a section in the recipe."""
    prepared: Any = None
    """What the study's `prepare` has given."""


@dataclass(frozen=True)
class Row:
    """One model of a study: where it is, what it cost (stages of the ledger), what it is scored on.

    `questions` None means the set that `evaluate.on` names.
    """

    label: str
    model: str
    stages: tuple[str, ...] = ()
    questions: tuple[Question, ...] | None = None


@dataclass(frozen=True)
class Study:
    """A question to the method, and how it is answered.

    `rows` trains what is missing and gives the models by name; all but `reference` are compared with it.
    `measure` adds figures that are not scores: per seed, numbers by name. `paper` has the paper's own
    figures, by label, as the paper gives them (average over its eight benchmarks unless said otherwise,
    Qwen3-4B-Instruct).
    """

    name: str
    asks: str
    paper: Mapping[str, str]
    rows: Callable[[Stages, "Chosen"], dict[str, Row]]
    reference: str = "sdzero"
    trains_srt: bool = False
    """Whether it collects or trains SRT anew, which `srt.checkpoint` would take the place of."""
    check: Callable[[Stages], None] = lambda stages: None
    """Raises UserError, before anything is trained, if the recipe or its data cannot answer."""
    measure: Callable[[Stages], dict[str, float | None]] | None = None
    measured: Mapping[str, str] = field(default_factory=dict)
    """Labels of what `measure` gives."""
    prepare: Callable[[Recipe, Path, Report, Progress], Any] | None = None
    """Called once, with the study's folder, before the seeds."""
    first_seed: int = 0
    """Added to the recipe's seed: a study may use seeds that nothing was chosen with."""
    trains_distill: bool = True
    """Whether phase 2 is trained as the recipe has it, before anything else."""


def own_rows(stages: Stages, *names: str) -> dict[str, Row]:
    """Rows of the models that every run has: base, srt, sdzero."""
    known = {
        "base": Row("base", stages.recipe.model.path),
        "srt": Row("SRT", stages.srt_folder(), ("collect", "srt")),
        "sdzero": Row("SD-Zero", trained(stages, "distill"), ("collect", "srt", "distill")),
    }
    return {name: known[name] for name in names}


def trained(stages: Stages, name: str) -> str:
    """The model that a stage has left."""
    return str(stages.run.path(f"{name}/model"))


def changed(settings: Any, **values: Any) -> Any:
    """The same settings with other values."""
    return settings.model_copy(update=values)
