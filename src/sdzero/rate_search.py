"""The learning-rate search of a comparison: equally many tries for every method, on tuning questions."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sdzero.compare_methods import (
    SEARCH_FILE,
    Method,
    Progress,
    at_rate,
    check_data,
    cost_of,
    train_guarded,
    with_seed,
)
from sdzero.compare_results import REFERENCE
from sdzero.errors import UserError
from sdzero.pipeline import Stages, open_run
from sdzero.recipe import Recipe
from sdzero.run_context import Report
from sdzero.run_dir import RunDir


def search(
    recipe: Recipe, folder: Path, methods: Sequence[Method], report: Report, progress: Progress
) -> dict[str, Any]:
    """The learning rate of each method with one to search, by kind: the best on the tuning set.

    Every method is tried at the same number of rates, with one seed that is not compared; `rft` and
    `rft@tokens` share one search, at the recipe's budget. `search.json` keeps scores and costs, also of
    methods that were searched before and are not named now. With a single factor nothing is tried.
    Returns what the file holds.
    """
    factors = recipe.compare.rate_factors
    kinds = {m.kind: Method(m.kind, m.kind) for m in methods if m.is_searched}
    if len(factors) == 1:
        found: dict[str, Any] = {
            "factors": list(factors),
            "seed": None,
            "questions": 0,
            "methods": {
                kind: {
                    "learning_rate": m.settings(recipe).learning_rate * factors[0],
                    "at_the_edge": False,
                    "tried": [],
                }
                for kind, m in kinds.items()
            },
            "cost": cost_of([], {}),
        }
    else:
        found = _searched(recipe, folder, list(kinds.values()), report, progress)
    outside = RunDir.unlocked(folder)
    if outside.path(SEARCH_FILE).exists():
        before = dict(outside.read_json(SEARCH_FILE))
        if all(before[key] == found[key] for key in ("factors", "seed")):
            found["methods"] = before["methods"] | found["methods"]
    outside.write_json(SEARCH_FILE, found)
    return found


def _searched(
    recipe: Recipe, folder: Path, methods: Sequence[Method], report: Report, progress: Progress
) -> dict[str, Any]:
    if not recipe.data.tuning:
        raise UserError(
            "learning rates are searched on the tuning set, and there is none",
            "data.tuning",
            "set it above 0, or give compare.rate_factors a single factor",
        )
    if recipe.evaluate.on == "tuning":
        raise UserError(
            "learning rates would be chosen and scored on the same questions",
            "evaluate.on",
            "set it to test, or give compare.rate_factors a single factor",
        )
    scoring = recipe.evaluate.model_copy(update={"on": "tuning"})
    on_tuning = with_seed(recipe, recipe.compare.search_seed).model_copy(update={"evaluate": scoring})
    with open_run(on_tuning, folder / "search", report, progress) as stages:
        check_data(methods, recipe, stages.training_questions)
        stages.phase_1()
        found, after = {}, "distill"
        # SD-Zero comes first: what it samples is the budget of the others.
        for method in sorted(methods, key=lambda m: m.kind != REFERENCE):
            found[method.name] = own = _search_one(stages, method, recipe.compare.rate_factors, after)
            if method.kind == REFERENCE:
                after = next((one["name"] for one in own["tried"] if not one["collapsed"]), after)
        spent = stages.ledger.by_stage()
        return {
            "factors": list(recipe.compare.rate_factors),
            "seed": stages.recipe.seed,
            "questions": len(stages.sets.tuning),
            "methods": found,
            "cost": cost_of(list(spent), spent),
        }


def _search_one(stages: Stages, method: Method, factors: Sequence[float], after: str) -> dict[str, Any]:
    """Train and score one method at each rate. One that collapses scores 0."""
    tried: list[dict[str, Any]] = []
    own = method.settings(stages.recipe)
    for factor in factors:
        name, settings = f"{method.stage}-x{factor:g}", at_rate(own, own.learning_rate * factor)
        collapsed = train_guarded(stages, method, name, settings, partial(stages.budget, method.match, after))
        score: dict[str, Any] = {"avg": 0.0, "mean_tokens": None}
        if collapsed is None:
            score = stages.evaluate(name, stages.run.path(f"{name}/model"), revise=False)["evaluation"]
        tried.append(
            {
                "name": name,
                "factor": factor,
                "learning_rate": settings.learning_rate,
                "avg": score["avg"],
                "mean_tokens": score["mean_tokens"],
                "collapsed": collapsed,
                **cost_of([name], stages.ledger.by_stage()),
            }
        )
    best = max(tried, key=lambda one: (one["collapsed"] is None, one["avg"], -one["learning_rate"]))
    shown = ", ".join(f"{one['avg']:.3f} at {one['learning_rate']:g}" for one in tried)
    stages.report(f"{method.name}: learning rate {best['learning_rate']:g}, tuning avg {shown}")
    return {
        "learning_rate": best["learning_rate"],
        "at_the_edge": best["factor"] in (min(factors), max(factors)),
        "tried": tried,
    }
