"""The baselines by name: which section of the recipe each has, and how it is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sdzero.baselines.grpo import train_grpo
from sdzero.baselines.negative import train_negative
from sdzero.baselines.rft import train_rft
from sdzero.baselines.sdft import train_sdft
from sdzero.baselines.sft import check_solutions, train_sft
from sdzero.errors import UserError, unknown_name
from sdzero.questions.question import Question
from sdzero.recipe import Recipe
from sdzero.recipe_base import OptimizerSettings
from sdzero.recipe_baselines import SdftSettings, SftSettings
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
                f"add `{self.name}:` with at least its learning_rate (see docs/recipes.md), or leave"
                f" `{self.name}` out of --methods",
            )
        return found


def _check_sft(settings: SftSettings, questions: Sequence[Question]) -> None:
    if settings.demonstrations == "solutions":
        check_solutions(questions, "sft.demonstrations=answers")


def _check_sdft(settings: SdftSettings, questions: Sequence[Question]) -> None:
    if settings.reference == "solution":
        check_solutions(questions, "sdft.reference=answer")


BASELINES: dict[str, Baseline] = {
    one.name: one
    for one in (
        Baseline("sft", train_sft, _check_sft),
        Baseline("rft", train_rft),
        Baseline("grpo", train_grpo),
        Baseline("sdft", train_sdft, _check_sdft),
        Baseline("negative", train_negative),
    )
}


def baseline_named(name: str) -> Baseline:
    """The baseline of this name. Raises UserError for an unknown one."""
    if name not in BASELINES:
        raise unknown_name("baseline", name, BASELINES)
    return BASELINES[name]
