"""Methods side by side: the same questions, one budget, several seeds, honest statistics.

A comparison is a folder: `search/` (the learning-rate search, on tuning questions, with a seed of its
own), `search.json` (what it found), one run folder `seed-N/` a seed, and `compare.json`. Everything that
is finished is kept, so a comparison may be interrupted, and methods and seeds may be added to it.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from sdzero.compare_methods import (
    OWN_METHODS,
    Method,
    Progress,
    at_rate,
    check_data,
    collapse_of,
    cost_of,
    model_of,
    train_guarded,
    with_seed,
)
from sdzero.compare_results import REFERENCE, by_kind, compare_results
from sdzero.errors import UserError
from sdzero.pipeline import Stages, open_run
from sdzero.rate_search import search
from sdzero.recipe import Recipe
from sdzero.recipe_distill import DistillSettings
from sdzero.run_context import Report
from sdzero.run_dir import RunDir


def compare(
    recipe: Recipe,
    folder: Path,
    methods: Sequence[Method],
    seeds: int,
    report: Report,
    progress: Progress,
) -> dict[str, Any]:
    """Run or resume what is missing, and write `compare.json`. Returns what it holds.

    Raises UserError for bad input before anything is sampled: a method without its section, a baseline
    that needs what the data lacks, a search seed among the seeds, a folder of another recipe.
    """
    numbers = list(range(recipe.seed, recipe.seed + seeds))
    if recipe.compare.search_seed in numbers:
        raise UserError(
            f"the search seed {recipe.compare.search_seed} is one of the seeds that are compared",
            "compare.search_seed",
            "choose another one: what is chosen on a seed must not be scored on it",
        )
    for method in methods:
        if method.is_searched:
            method.settings(recipe)
    searched = search(recipe, folder, methods, report, progress)
    rates = {kind: float(own["learning_rate"]) for kind, own in searched["methods"].items()}
    found: list[dict[str, Any]] = []
    for seed in numbers:
        report(f"seed {seed}")
        with open_run(with_seed(recipe, seed), folder / f"seed-{seed}", report, progress) as stages:
            found.append(run_seed(stages, methods, rates))
    results = compare_results(recipe, [m.name for m in methods], numbers, found, searched)
    RunDir.unlocked(folder).write_json("compare.json", results)
    return results


def run_seed(stages: Stages, methods: Sequence[Method], rates: Mapping[str, float]) -> dict[str, Any]:
    """Train and score every method with one seed; what was scored and what it took, by method."""
    check_data(methods, stages.recipe, stages.training_questions)
    stages.phase_1()
    stages.distill(settings=cast("DistillSettings", at_rate(stages.recipe.distill, rates[REFERENCE])))
    for method in methods:
        if method.kind not in OWN_METHODS:
            settings = at_rate(method.settings(stages.recipe), rates[method.kind])
            train_guarded(stages, method, method.name, settings, partial(stages.budget, method.match))
    scored = {method.name: stages.evaluate(method.name, model_of(stages, method)) for method in methods}
    stages.write_results()
    spent = stages.ledger.by_stage()
    kinds = {question.id: question.kind for question in getattr(stages.sets, stages.recipe.evaluate.on)}
    return {
        method.name: {
            "scores": scored[method.name],
            "by_kind": by_kind(scored[method.name]["per_question"], kinds),
            "cost": cost_of(method.stages, spent) | {"energy": stages.ledger.energy(method.stages)},
            "collapsed": collapse_of(stages, method.stage) is not None,
        }
        for method in methods
    }
