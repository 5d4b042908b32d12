"""The methods of a comparison: their names, their settings, how one is trained, what it cost."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from sdzero import ranks
from sdzero.baselines.registry import BASELINES, baseline_named
from sdzero.compare_results import COSTS, REFERENCE
from sdzero.energy import total
from sdzero.errors import CollapseError, UserError, unknown_name
from sdzero.method.alarms import last_good_checkpoint
from sdzero.pipeline import Stages
from sdzero.questions.question import Question
from sdzero.recipe import Recipe
from sdzero.recipe_base import OptimizerSettings
from sdzero.recipe_distill import DistillSettings
from sdzero.run_context import Budget

OWN_METHODS = ("base", "srt", "sdzero")
"""What SD-Zero's own stages give; all other methods are baselines."""

SEARCH_FILE = "search.json"
"""Where a comparison keeps the learning rates that it found."""

Progress = Callable[[str, int, int], None]
Match = Literal["responses", "tokens"]


@dataclass(frozen=True)
class Method:
    """A method of a comparison. `name` is `rft`, or `rft@tokens` for a budget of its own kind."""

    name: str
    kind: str
    match: Match | None = None

    @property
    def is_searched(self) -> bool:
        """Whether it has a learning rate of its own to search: SRT's is part of SD-Zero's recipe."""
        return self.kind not in ("base", "srt")

    def settings(self, recipe: Recipe) -> OptimizerSettings:
        """The section of the recipe that holds its learning rate. Raises UserError if there is none."""
        return recipe.distill if self.kind == "sdzero" else baseline_named(self.kind).settings(recipe)

    @property
    def stage(self) -> str:
        """The stage that trains it."""
        return "distill" if self.kind == REFERENCE else self.name

    @property
    def stages(self) -> tuple[str, ...]:
        """The ledger's stages that are its cost; in label-free mode every training has the labels in its."""
        own: dict[str, tuple[str, ...]] = {
            "base": (),
            "srt": ("labels", "collect", "srt"),
            "sdzero": ("labels", "collect", "srt", "distill"),
        }
        return own.get(self.kind, ("labels", self.name))


def parse_methods(names: Sequence[str]) -> list[Method]:
    """The methods of these names, SD-Zero (which gives the budget) among them.

    Raises UserError for an unknown or repeated name, and for a name with `@` that has no budget.
    """
    known = [*OWN_METHODS, *BASELINES]
    methods: list[Method] = []
    for name in names:
        kind, at, match = name.partition("@")
        if kind not in known:
            raise unknown_name("method", kind, known, "--methods")
        if at and (match not in ("responses", "tokens") or kind in OWN_METHODS):
            raise UserError(
                f"`{name}` is no method with a budget",
                "--methods",
                "write a baseline's name, or its name with @responses or @tokens, such as grpo@tokens",
            )
        methods.append(Method(name, kind, cast("Match", match) if at else None))
    doubled = [name for name in names if list(names).count(name) > 1]
    if doubled:
        raise UserError(f"`{doubled[0]}` stands there twice", "--methods", "name each method once")
    if REFERENCE not in names:
        raise UserError(
            f"`{REFERENCE}` is missing: its budget is everyone's, and differences are taken from it",
            "--methods",
            f"add `{REFERENCE}`",
        )
    return methods


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The same recipe with another seed."""
    return recipe.model_copy(update={"seed": seed})


def at_rate(settings: OptimizerSettings, rate: float) -> OptimizerSettings:
    """The same settings at another learning rate."""
    return settings.model_copy(update={"learning_rate": rate})


def check_data(methods: Sequence[Method], recipe: Recipe, questions: Sequence[Question]) -> None:
    """Raise UserError for a baseline that needs what these questions do not have."""
    for method in methods:
        if method.kind not in OWN_METHODS:
            baseline_named(method.kind).check(method.settings(recipe), questions)


def train_guarded(
    stages: Stages,
    method: Method,
    name: str,
    settings: OptimizerSettings,
    budget: Callable[[], Budget],
) -> str | None:
    """Train a method under a name; what collapsed, if it did, or None.

    A collapse is noted beside the stage, with the model as it was last good (a checkpoint, or the model it
    started from), and is not tried again while the alarms are the same.
    """
    stages.claim(name, settings)
    alarms = stages.recipe.alarms.model_dump(mode="json")
    note = collapse_of(stages, name)
    if note is not None and note["alarms"] == alarms:
        return str(note["what"])
    try:
        if method.kind == REFERENCE:
            stages.distill(name, cast("DistillSettings", settings))
        else:
            stages.baseline(method.kind, name, settings, budget())
    except CollapseError as collapse:
        stages.report(f"{name} collapsed and was stopped: {collapse.what}")
        good = [last_good_checkpoint(path) for path in sorted(stages.run.path(name).glob("checkpoints*"))]
        kept = next((str(one.relative_to(stages.run.root)) for one in good if one is not None), None)
        _forget_scores(stages, name)
        stages.run.write_json(_note(name), {"what": collapse.what, "kept": kept, "alarms": alarms})
        return collapse.what
    if note is not None:
        # The scores go first: a process killed in between comes here again.
        _forget_scores(stages, name)
        _remove_file(stages, _note(name))
    return None


def _forget_scores(stages: Stages, name: str) -> None:
    """Scores that stand there are of what an earlier training left."""
    _remove_file(stages, f"evaluate/{name}.json")
    stages.run.remove_folders("evaluate", name)


def _remove_file(stages: Stages, relative: str) -> None:
    """Remove a file of the run, if it is there; of several processes the first does it."""
    with ranks.turn_of_first() as is_mine:
        if is_mine:
            stages.run.path(relative).unlink(missing_ok=True)


def _note(name: str) -> str:
    return f"{name}/collapse.json"


def collapse_of(stages: Stages, name: str) -> dict[str, Any] | None:
    """What was noted of a training that collapsed, or None."""
    return dict(stages.run.read_json(_note(name))) if stages.run.path(_note(name)).exists() else None


def model_of(stages: Stages, method: Method) -> str:
    """The folder of a trained method's model; of one that collapsed, what was last good."""
    own = {"base": stages.recipe.model.path, "srt": stages.srt_folder()}
    if method.kind in own:
        return own[method.kind]
    return model_at(stages, method.stage)


def model_at(stages: Stages, name: str) -> str:
    """The folder of a stage's model; of one that collapsed, what was last good, or the base model."""
    note = collapse_of(stages, name)
    if note is None:
        return str(stages.run.path(f"{name}/model"))
    return stages.recipe.model.path if note["kept"] is None else str(stages.run.path(note["kept"]))


def cost_of(names: Sequence[str], spent: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What these stages of a ledger took together; `joules` is None unless all of it was measured."""
    known = [spent[name] for name in names if name in spent]
    return {
        **{key: sum(own.get(key, 0) for own in known) for key in COSTS},
        "device_seconds": sum(own.get("device_seconds", 0) for own in known),
        "joules": total(own.get("joules") for own in known),
    }


def chosen_settings(recipe: Recipe, folder: Path, kind: str) -> OptimizerSettings:
    """A method's settings at the rate that a comparison in this folder has found, or at the recipe's."""
    settings, factors = Method(kind, kind).settings(recipe), recipe.compare.rate_factors
    if len(factors) == 1:  # nothing is searched: this is what a comparison will take
        settings = at_rate(settings, settings.learning_rate * factors[0])
    file = folder / SEARCH_FILE
    if not file.is_file():
        return settings
    found = json.loads(file.read_text(encoding="utf-8"))["methods"].get(kind)
    return settings if found is None else at_rate(settings, float(found["learning_rate"]))
