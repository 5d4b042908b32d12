"""`compare.json` and its table: means, intervals over seeds, paired differences, what each method took."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from sdzero.compare_costs import cost_cells, cost_columns, cost_notes, energy_of, returns
from sdzero.evaluate.stats import holm, interval_over_seeds, paired_difference
from sdzero.recipe import Recipe
from sdzero.recipe_io import recipe_sha256
from sdzero.run_dir import package_versions

SCHEMA = 1
REFERENCE = "sdzero"
COSTS = ("responses", "sampled_tokens", "trained_tokens", "teacher_tokens", "seconds")
LABELS = {
    "base": "base",
    "sft": "SFT",
    "rft": "RFT",
    "grpo": "GRPO",
    "sdft": "SDFT",
    "negative": "negative advantage",
    "srt": "SRT",
    "sdzero": "SD-Zero",
}


def compare_results(
    recipe: Recipe,
    names: Sequence[str],
    seeds: Sequence[int],
    found: Sequence[Mapping[str, Any]],
    search: Mapping[str, Any],
) -> dict[str, Any]:
    """The object of `compare.json`. `found` has, for each seed, each method's scores and cost.

    Accuracies are fractions in [0, 1] (`by_kind`: of the questions of each kind, a value a seed); lengths
    are tokens; costs are means over seeds. An interval is a
    95% interval over seeds (None for one seed); a difference is SD-Zero's minus the method's, paired over
    distinct questions on means over seeds, with the p-value of a sign-flip test, Holm-corrected over the
    methods of this comparison. Everything holds for the one base model of the recipe.
    """
    first = found[0]
    base = _mean([one["base"]["scores"]["evaluation"]["avg"] for one in found]) if "base" in first else None
    own: dict[str, Any] = {}
    for name in names:
        evaluations = [one[name]["scores"]["evaluation"] for one in found]
        averages = [float(one["avg"]) for one in evaluations]
        interval = interval_over_seeds(averages)
        costs = [one[name]["cost"] for one in found]
        own[name] = {
            "mean": _mean(averages),
            "interval": None if interval is None else list(interval),
            "per_seed": averages,
            "pass_at_k": _mean([one["pass_at_k"] for one in evaluations]),
            "mean_tokens": _mean([one["mean_tokens"] for one in evaluations]),
            "learning_rate": search["methods"].get(name.partition("@")[0], {}).get("learning_rate"),
            "collapsed_seeds": [s for s, one in zip(seeds, found, strict=True) if one[name].get("collapsed")],
            "by_kind": {
                kind: [one[name]["by_kind"][kind] for one in found] for kind in first[name].get("by_kind", {})
            },
            "revision": _revision([one[name]["scores"]["revision"] for one in found]),
            **{key: _mean([cost[key] for cost in costs]) for key in COSTS},
            **returns(_mean(averages), base, costs, recipe.cost),
        }
    return {
        "schema": SCHEMA,
        "family": recipe.name,
        "model": recipe.model.path,
        "seeds": list(seeds),
        "questions": first[REFERENCE]["scores"]["evaluation"]["questions"],
        "k": recipe.evaluate.k,
        "on": recipe.evaluate.on,
        "match": recipe.budget.match,
        "budget": getattr(recipe.budget, recipe.budget.match),
        "methods": own,
        "against": paired(names, found, REFERENCE, reference_first=True),
        "search": dict(search),
        "energy": energy_of([one[REFERENCE]["cost"] for one in found]),
        "prices": recipe.cost.model_dump(),
        "versions": package_versions(),
        "recipe_sha256": recipe_sha256(recipe),
    }


def paired(
    names: Sequence[str], found: Sequence[Mapping[str, Any]], reference: str, reference_first: bool
) -> dict[str, Any]:
    """Each method's difference from the reference: reference minus method, or the other way round.

    `p` is Holm-corrected over the methods, `p_alone` is not. Methods that were scored on questions of
    which the reference saw fewer than two have no difference.
    """
    own = question_means([one[reference]["scores"] for one in found])
    compared: dict[str, Any] = {}
    for name in names:
        other = question_means([one[name]["scores"] for one in found])
        shared = [question for question in own if question in other]
        if name == reference or len(shared) < 2:
            continue
        first, second = (own, other) if reference_first else (other, own)
        difference = paired_difference([first[q] for q in shared], [second[q] for q in shared])
        compared[name] = {
            "difference": difference.difference,
            "interval": list(difference.interval),
            "interval_over_seeds": _over_seeds(name, found, reference, reference_first),
            "p_alone": difference.p,
            "questions": len(shared),
        }
    corrected = holm([one["p_alone"] for one in compared.values()])
    for one, p in zip(compared.values(), corrected, strict=True):
        one["p"] = p
    return compared


def _over_seeds(
    name: str, found: Sequence[Mapping[str, Any]], reference: str, reference_first: bool
) -> list[float] | None:
    """The 95% interval of the seeds' differences in avg, on these questions; None for one seed."""
    sign = 1 if reference_first else -1
    pairs = [
        (one[reference]["scores"]["evaluation"]["avg"], one[name]["scores"]["evaluation"]["avg"])
        for one in found
    ]
    interval = interval_over_seeds([sign * (own - other) for own, other in pairs])
    return None if interval is None else list(interval)


def question_means(scores: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Each question's mean reward over all its responses of all seeds (of those seeds that graded it)."""
    rewards: dict[str, list[float]] = {}
    for one in scores:
        for question, own in one["per_question"].items():
            rewards.setdefault(question, []).append(_mean(own))
    return {question: _mean(own) for question, own in rewards.items()}


def by_kind(rewards: Mapping[str, Sequence[float]], kinds: Mapping[str, str]) -> dict[str, float]:
    """The mean score of the questions of each kind; nothing where all are of one kind."""
    grouped: dict[str, list[float]] = {}
    for question, own in rewards.items():
        grouped.setdefault(kinds[question], []).append(_mean(own))
    return {kind: _mean(grouped[kind]) for kind in sorted(grouped)} if len(grouped) > 1 else {}


def _revision(found: Sequence[Mapping[str, Any] | None]) -> dict[str, float] | None:
    known = [one for one in found if one]
    if not known:
        return None
    return {key: _mean([one[key] for one in known]) for key in known[0]}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ---- for people ----


def label(name: str) -> str:
    """A method's name in a table."""
    kind, at, match = name.partition("@")
    return LABELS.get(kind, kind) + (f", same {match}" if at else "")


def percent(value: float, interval: Sequence[float] | None = None, sign: str = "") -> str:
    """A fraction as per cent, with its interval if there is one."""
    text = f"{value:{sign}.1%}"
    return text if interval is None else f"{text} [{interval[0]:{sign}.1%}, {interval[1]:{sign}.1%}]"


def bounds(interval: Sequence[float] | None) -> str:
    """An interval of differences as per cent."""
    return "" if interval is None else f"[{interval[0]:+.1%}, {interval[1]:+.1%}]"


def p_value(p: float) -> str:
    """A p-value to two digits, very small ones as a bound."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def rows(results: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the table, a list a method."""
    cells = []
    for name, own in results["methods"].items():
        difference = results["against"].get(name)
        cells.append(
            [
                label(name),
                percent(own["mean"], own["interval"]),
                "" if difference is None else percent(difference["difference"], difference["interval"], "+"),
                "" if difference is None else bounds(difference["interval_over_seeds"]),
                "" if difference is None else p_value(difference["p"]),
                f"{own['pass_at_k']:.1%}",
                f"{own['mean_tokens']:.1f}",
                f"{own['responses']:,.0f}",
                f"{own['sampled_tokens']:,.0f}",
                f"{own['trained_tokens']:,.0f}",
                f"{own['seconds']:.0f}",
                *cost_cells(results, name),
            ]
        )
    return cells


def columns(results: Mapping[str, Any]) -> list[str]:
    """The heads of the table."""
    k = results["k"]
    return [
        "",
        f"avg@{k}",
        "SD-Zero minus it",
        "over seeds",
        "p",
        f"pass@{k}",
        "tokens",
        "responses",
        "sampled tokens",
        "trained tokens",
        "s",
        *cost_columns(results),
    ]


def notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know beside the table."""
    search = results["search"]
    lines = [
        f"{len(results['seeds'])} seeds, {results['questions']} distinct {results['on']} questions."
        " Brackets after avg, and in the column `over seeds`: 95% interval over seeds, for these questions."
        " Differences: paired over distinct questions on means over seeds, with a 95% interval over"
        " questions, and p by sign flips, Holm-corrected over the methods here; both are for these trained"
        " models. All of it is conditional on one base model.",
    ]
    if len(search["factors"]) > 1:
        edges = [
            label(name)
            for name, own in search["methods"].items()
            if own["at_the_edge"] and name in {one.partition("@")[0] for one in results["methods"]}
        ]
        lines.append(
            f"Learning rates: the best of {len(search['factors'])} for every method, on"
            f" {search['questions']} tuning questions with seed {search['seed']}; the search took"
            f" {search['cost']['responses']:,} responses and {search['cost']['seconds']:,.0f} s, scoring"
            " included."
            + (f" The best is at the edge of what was tried for: {', '.join(edges)}." if edges else "")
        )
    collapsed = [label(name) for name, own in results["methods"].items() if own["collapsed_seeds"]]
    if collapsed:
        lines.append(
            f"Stopped by an alarm on at least one seed, and scored as it was before: {', '.join(collapsed)}."
        )
    return lines + cost_notes(results)


def compare_table(results: Mapping[str, Any]) -> Table:
    """The table of a comparison."""
    given = "" if results["budget"] is None else f", baselines: {results['budget']:,}"
    title = f"{results['family']}: methods at one budget ({results['match']}{given})"
    table = Table(title=title, title_justify="left")
    for column in columns(results):
        table.add_column(column, justify="right" if column else "left")
    for cells in rows(results):
        table.add_row(*cells)
    return table
