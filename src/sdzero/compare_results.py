"""`compare.json` and its table: means, intervals over seeds, paired differences, what each method took."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

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

    Accuracies are fractions in [0, 1]; lengths are tokens; costs are means over seeds. An interval is a
    95% interval over seeds (None for one seed); a difference is SD-Zero's minus the method's, paired over
    distinct questions on means over seeds, with the p-value of a sign-flip test, Holm-corrected over the
    methods of this comparison. Everything holds for the one base model of the recipe.
    """
    first = found[0]
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
            "learning_rate": search["methods"].get(name, {}).get("learning_rate"),
            "revision": _revision([one[name]["scores"]["revision"] for one in found]),
            **{key: _mean([cost[key] for cost in costs]) for key in COSTS},
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
        "methods": own,
        "against": against(names, found),
        "search": dict(search),
        "versions": package_versions(),
        "recipe_sha256": recipe_sha256(recipe),
    }


def against(names: Sequence[str], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """SD-Zero minus each other method; `p` is Holm-corrected, `p_alone` is not."""
    reference = question_means([one[REFERENCE]["scores"] for one in found])
    compared: dict[str, Any] = {}
    for name in names:
        if name == REFERENCE:
            continue
        other = question_means([one[name]["scores"] for one in found])
        shared = [question for question in reference if question in other]
        paired = paired_difference([reference[q] for q in shared], [other[q] for q in shared])
        compared[name] = {
            "difference": paired.difference,
            "interval": list(paired.interval),
            "p_alone": paired.p,
            "questions": len(shared),
        }
    corrected = holm([one["p_alone"] for one in compared.values()])
    for one, p in zip(compared.values(), corrected, strict=True):
        one["p"] = p
    return compared


def question_means(scores: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Each question's mean reward over all its responses of all seeds (of those seeds that graded it)."""
    rewards: dict[str, list[float]] = {}
    for one in scores:
        for question, own in one["per_question"].items():
            rewards.setdefault(question, []).append(_mean(own))
    return {question: _mean(own) for question, own in rewards.items()}


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
                "" if difference is None else p_value(difference["p"]),
                f"{own['pass_at_k']:.1%}",
                f"{own['mean_tokens']:.1f}",
                f"{own['responses']:,.0f}",
                f"{own['sampled_tokens']:,.0f}",
                f"{own['trained_tokens']:,.0f}",
                f"{own['seconds']:.0f}",
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
        "p",
        f"pass@{k}",
        "tokens",
        "responses",
        "sampled tokens",
        "trained tokens",
        "s",
    ]


def notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know beside the table."""
    search = results["search"]
    lines = [
        f"{len(results['seeds'])} seeds, {results['questions']} distinct {results['on']} questions."
        " Brackets after avg: 95% interval over seeds. Differences: paired over distinct questions on means"
        " over seeds; p by sign flips, Holm-corrected over the methods here. All of it is conditional on one"
        " base model.",
    ]
    if search["methods"]:
        edges = [label(name) for name, own in search["methods"].items() if own["at_the_edge"]]
        lines.append(
            f"Learning rates: the best of {len(search['factors'])} for every method, on"
            f" {search['questions']} tuning questions with seed {search['seed']}; the search took"
            f" {search['cost']['responses']:,} responses and {search['cost']['seconds']:,.0f} s."
            + (f" The best is at the edge of what was tried for: {', '.join(edges)}." if edges else "")
        )
    return lines


def compare_table(results: Mapping[str, Any]) -> Table:
    """The table of a comparison."""
    title = f"{results['family']}: methods at one budget ({results['match']})"
    table = Table(title=title, title_justify="left")
    for column in columns(results):
        table.add_column(column, justify="right" if column else "left")
    for cells in rows(results):
        table.add_row(*cells)
    return table
