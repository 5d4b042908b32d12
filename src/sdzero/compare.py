"""Methods side by side: the same questions, one budget, several seeds, honest statistics.

A comparison is a folder: `search/` (the learning-rate search, on tuning questions, with a seed of its
own), `search.json` (what it found), one run folder `seed-N/` a seed, and `compare.json`. Everything that
is finished is kept, so a comparison may be interrupted, and methods and seeds may be added to it.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from sdzero.baselines.registry import BASELINES, baseline_named
from sdzero.compare_results import compare_results
from sdzero.errors import UserError
from sdzero.pipeline import Stages, open_run
from sdzero.questions.question import Question
from sdzero.recipe import DistillSettings, OptimizerSettings, Recipe
from sdzero.run_context import Report
from sdzero.run_dir import RunDir

OWN_METHODS = ("base", "srt", "sdzero")
"""What SD-Zero's own stages give; all other methods are baselines."""
REFERENCE = "sdzero"

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
    def stages(self) -> tuple[str, ...]:
        """The ledger's stages that are its cost."""
        own: dict[str, tuple[str, ...]] = {
            "base": (),
            "srt": ("collect", "srt"),
            "sdzero": ("collect", "srt", "distill"),
        }
        return own.get(self.kind, (self.name,))


def parse_methods(names: Sequence[str]) -> list[Method]:
    """The methods of these names, SD-Zero (which gives the budget) among them.

    Raises UserError for an unknown or repeated name, and for a name with `@` that has no budget.
    """
    known = [*OWN_METHODS, *BASELINES]
    methods: list[Method] = []
    for name in names:
        kind, at, match = name.partition("@")
        if kind not in known:
            nearest = difflib.get_close_matches(kind, known, n=1)
            raise UserError(
                f"there is no method `{kind}`",
                "--methods",
                f"did you mean `{nearest[0]}`?" if nearest else f"known are {', '.join(known)}",
            )
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
    rates = search(recipe, folder, methods, report, progress)
    found: list[dict[str, Any]] = []
    for seed in numbers:
        report(f"seed {seed}")
        with open_run(with_seed(recipe, seed), folder / f"seed-{seed}", report, progress) as stages:
            found.append(run_seed(stages, methods, rates))
    outside = RunDir.unlocked(folder)
    results = compare_results(
        recipe, [m.name for m in methods], numbers, found, dict(outside.read_json("search.json"))
    )
    outside.write_json("compare.json", results)
    return results


def run_seed(stages: Stages, methods: Sequence[Method], rates: Mapping[str, float]) -> dict[str, Any]:
    """Train and score every method with one seed; what was scored and what it took, by method."""
    check_data(methods, stages.recipe, stages.training_questions)
    train_own(stages, methods, cast("DistillSettings", at_rate(stages.recipe.distill, rates[REFERENCE])))
    for method in methods:
        if method.kind not in OWN_METHODS:
            settings = at_rate(method.settings(stages.recipe), rates[method.name])
            stages.baseline(method.kind, method.name, settings, stages.budget(method.match))
    scored = {method.name: stages.evaluate(method.name, model_of(stages, method)) for method in methods}
    stages.write_results()
    spent = stages.ledger.by_stage()
    return {
        method.name: {"scores": scored[method.name], "cost": cost_of(method.stages, spent)}
        for method in methods
    }


def train_own(stages: Stages, methods: Sequence[Method], settings: DistillSettings) -> None:
    """SD-Zero's own stages: every comparison needs them, for the budget if for nothing else."""
    for round_ in range(1, stages.recipe.collect.rounds + 1):
        stages.collect(round_)
        stages.srt(round_)
    stages.distill(settings=settings)


def model_of(stages: Stages, method: Method) -> str:
    """The folder of a trained method's model."""
    own = {"base": stages.recipe.model.path, "srt": stages.srt_folder()}
    if method.kind in own:
        return own[method.kind]
    return str(stages.run.path("distill/model" if method.kind == "sdzero" else f"{method.name}/model"))


def cost_of(names: Sequence[str], spent: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What these stages of a ledger took together."""
    keys = ("responses", "sampled_tokens", "trained_tokens", "teacher_tokens", "seconds")
    return {key: sum(spent.get(name, {}).get(key, 0) for name in names) for key in keys}


def check_data(methods: Sequence[Method], recipe: Recipe, questions: Sequence[Question]) -> None:
    """Raise UserError for a baseline that needs what these questions do not have."""
    for method in methods:
        if method.kind not in OWN_METHODS:
            baseline_named(method.kind).check(method.settings(recipe), questions)


# ---- the learning-rate search ----


def variant_name(method: Method, factor: float) -> str:
    """The name of a method's training at a multiple of its rate, in the search's run folder."""
    return f"{'distill' if method.kind == 'sdzero' else method.name}-x{factor:g}"


def search(
    recipe: Recipe, folder: Path, methods: Sequence[Method], report: Report, progress: Progress
) -> dict[str, float]:
    """The learning rate of each method with one to search: the best on the tuning set.

    Every method is tried at the same number of rates, with one seed that is not compared. The methods
    found before are not searched again; `search.json` keeps scores and costs. With a single factor there
    is nothing to search.
    """
    factors = recipe.compare.rate_factors
    searched = [method for method in methods if method.is_searched]
    if len(factors) == 1:
        RunDir.unlocked(folder).write_json("search.json", {"factors": factors, "methods": {}})
        return {m.name: m.settings(recipe).learning_rate * factors[0] for m in searched}
    if not recipe.data.tuning:
        raise UserError(
            "learning rates are searched on the tuning set, and there is none",
            "data.tuning",
            "set it above 0, or give compare.rate_factors a single factor",
        )
    on_tuning = with_seed(recipe, recipe.compare.search_seed)
    on_tuning = on_tuning.model_copy(
        update={"evaluate": on_tuning.evaluate.model_copy(update={"on": "tuning"})}
    )
    with open_run(on_tuning, folder / "search", report, progress) as stages:
        check_data(methods, recipe, stages.training_questions)
        found = _search(stages, sorted(searched, key=lambda method: method.kind != "sdzero"), factors)
    RunDir.unlocked(folder).write_json("search.json", found)
    return {name: own["learning_rate"] for name, own in found["methods"].items()}


def _search(stages: Stages, methods: Sequence[Method], factors: Sequence[float]) -> dict[str, Any]:
    """SD-Zero comes first: what it samples is the budget of the others."""
    for round_ in range(1, stages.recipe.collect.rounds + 1):
        stages.collect(round_)
        stages.srt(round_)
    found: dict[str, Any] = {}
    sdzero = next(method for method in methods if method.kind == "sdzero")
    for method in methods:
        tried = []
        for factor in factors:
            name = variant_name(method, factor)
            settings = at_rate(
                method.settings(stages.recipe), method.settings(stages.recipe).learning_rate * factor
            )
            if method.kind == "sdzero":
                stages.distill(name, cast("DistillSettings", settings))
            else:
                budget = stages.budget(method.match, after=variant_name(sdzero, factors[0]))
                stages.baseline(method.kind, name, settings, budget)
            score = stages.evaluate(name, stages.run.path(f"{name}/model"), revise=False)["evaluation"]
            spent = stages.ledger.by_stage()
            tried.append(
                {
                    "factor": factor,
                    "learning_rate": settings.learning_rate,
                    "avg": score["avg"],
                    "mean_tokens": score["mean_tokens"],
                    **cost_of([name], spent),
                }
            )
        best = max(tried, key=lambda one: (one["avg"], -one["learning_rate"]))
        found[method.name] = {
            "learning_rate": best["learning_rate"],
            "at_the_edge": best["factor"] in (min(factors), max(factors)),
            "tried": tried,
        }
        stages.report(
            f"{method.name}: learning rate {best['learning_rate']:g}, tuning avg "
            + ", ".join(f"{one['avg']:.3f} at {one['learning_rate']:g}" for one in tried)
        )
    spent = stages.ledger.by_stage()
    return {
        "factors": list(factors),
        "seed": stages.recipe.seed,
        "questions": len(stages.sets.tuning),
        "methods": found,
        "cost": cost_of([stage for stage in spent if stage != "evaluate"], spent),
    }
