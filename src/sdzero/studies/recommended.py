"""The study of the recommended settings: phase 2 with them, with the paper's, and GRPO, at one budget.

Learning rates are searched for each on the tuning set, with the seed of a comparison's search; the seeds of
the study are used by nothing else.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdzero.compare_methods import Method, at_rate, model_at, train_guarded
from sdzero.pipeline import Stages
from sdzero.rate_search import search
from sdzero.recipe import Recipe
from sdzero.run_context import Budget, Report
from sdzero.studies.study import Chosen, Progress, Row, Study, changed, own_rows, trained

PAPER: Mapping[str, Any] = {
    "divergence": "reverse",
    "divergence_clip": None,
    "clip_gradient": "scale",
    "token_share": 1.0,
    "divergence_on": "all",
    "contrast": 0.0,
    "policy_gradient_weight": 0.0,
    "question_sampling": "uniform",
    "rollouts_ahead": 0,
    "sync": "never",
    "sync_every": None,
    "teacher_decay": None,
    "rehearsal_weight": 0.0,
}
"""Phase 2 as the paper has it, and as a recipe has it that says nothing else."""

RECOMMENDED: Mapping[str, Any] = {
    **PAPER,
    "divergence": "mixed",
    "rehearsal_weight": 0.3,
    "policy_gradient_weight": 3.0,
}
"""What was best on the tuning sets of the families (docs/options.md)."""

VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "paper": ("paper's settings", PAPER),
    "recommended": ("recommended settings", RECOMMENDED),
}
GRPO = Method("grpo", "grpo")
FRESH_SEEDS = 100
"""The first seed of the study is the recipe's plus this."""


def with_settings(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with other settings of phase 2."""
    return recipe.model_copy(update={"distill": changed(recipe.distill, **values)})


def search_rates(recipe: Recipe, folder: Path, report: Report, progress: Progress) -> dict[str, float]:
    """The best rate on the tuning set of each variant, and of GRPO within the recommended one's budget."""
    rates = {}
    for name, (_, values) in VARIANTS.items():
        own = folder / f"search-{name}"
        methods = [Method("sdzero", "sdzero"), *([GRPO] if name == "recommended" else [])]
        found = search(with_settings(recipe, values), own, methods, report, progress)["methods"]
        rates[name] = float(found["sdzero"]["learning_rate"])
        if "grpo" in found:
            rates["grpo"] = float(found["grpo"]["learning_rate"])
    return rates


def recommended_rows(stages: Stages, chosen: Chosen) -> dict[str, Row]:
    """Both variants from the same SRT model, and GRPO with as many sampled tokens as the recommended one."""
    rows = own_rows(stages, "base", "srt")
    for name, (label, values) in VARIANTS.items():
        settings = changed(stages.recipe.distill, **values, learning_rate=chosen.prepared[name])
        stages.distill(name, settings)
        rows[name] = Row(label, trained(stages, name), ("collect", "srt", name))
    tokens = stages.budget("tokens", "recommended")
    settings = at_rate(GRPO.settings(stages.recipe), chosen.prepared["grpo"])
    collapsed = train_guarded(stages, GRPO, "grpo-tokens", settings, lambda: Budget("tokens", tokens.amount))
    note = ", stopped by an alarm" if collapsed else ""
    rows["grpo-tokens"] = Row(f"GRPO, same tokens{note}", model_at(stages, "grpo-tokens"), ("grpo-tokens",))
    return rows


def check_grpo(stages: Stages) -> None:
    """Raise UserError without the recipe's section `grpo`."""
    GRPO.settings(stages.recipe)


RECOMMENDED_STUDIES = (
    Study(
        "recommended",
        "Are the recommended settings above the paper's, and above GRPO?",
        {"SD-Zero": "60.3", "GRPO": "53.1"},
        recommended_rows,
        reference="recommended",
        check=check_grpo,
        prepare=search_rates,
        first_seed=FRESH_SEEDS,
        trains_distill=False,
    ),
)
