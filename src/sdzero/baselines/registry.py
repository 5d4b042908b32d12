"""The baselines by name: which section of the recipe each has, and how it is trained."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sdzero.baselines.rft import train_rft
from sdzero.errors import UserError
from sdzero.questions.question import Question
from sdzero.recipe import OptimizerSettings, Recipe
from sdzero.run_context import Budget, RunContext


@dataclass(frozen=True)
class Baseline:
    """`train` reads what it needs from the run, stays within the budget and keeps the model in `name`."""

    name: str
    train: Callable[[RunContext, str, Any, Budget], None]
    check: Callable[[Any, Sequence[Question]], None] = lambda settings, questions: None
    """Raises UserError if the questions lack what the baseline needs."""

    def settings(self, recipe: Recipe) -> OptimizerSettings:
        """The baseline's own section. Raises UserError if the recipe has none."""
        found: OptimizerSettings | None = getattr(recipe, self.name)
        if found is None:
            raise UserError(
                f"the recipe has no section `{self.name}`, which this baseline needs",
                f"recipe `{recipe.name}`",
                f"add `{self.name}:` with at least its learning_rate (see docs/recipes.md)",
            )
        return found


BASELINES: dict[str, Baseline] = {one.name: one for one in (Baseline("rft", train_rft),)}


def baseline_named(name: str) -> Baseline:
    """The baseline of this name. Raises UserError for an unknown one."""
    if name not in BASELINES:
        nearest = difflib.get_close_matches(name, BASELINES, n=1)
        raise UserError(
            f"there is no baseline `{name}`",
            todo=f"did you mean `{nearest[0]}`?" if nearest else f"known are {', '.join(BASELINES)}",
        )
    return BASELINES[name]
