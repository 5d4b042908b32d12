"""`results.json` and the printed table: made from what was measured, for scripts and for people."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from sdzero.energy import energy_text, sources_of
from sdzero.errors import UserError
from sdzero.evaluate.stats import interval_over_seeds, paired_difference
from sdzero.label_report import label_results
from sdzero.ledger import Ledger
from sdzero.recipe import Recipe
from sdzero.run_dir import RunDir

SCHEMA = 1
NAMES = {
    "base": "base",
    "sft": "SFT",
    "rft": "RFT (same responses)",
    "grpo": "GRPO (same responses)",
    "sdft": "SDFT (same responses)",
    "negative": "negative advantage (same responses)",
    "srt": "SRT",
    "sdzero": "SD-Zero",
}
"""Methods in the order in which tables show them."""
BASELINES = ("sft", "rft", "grpo", "sdft", "negative")
TRAINING_STAGES = ("labels", "collect", "srt", "distill")
"""The stages whose responses and tokens are SD-Zero's budget; the control and evaluation are apart. `labels`
is there in label-free mode only; every method that is trained pays for it."""


def check_score_name(name: str) -> None:
    """Raise UserError unless a model of the user's can be scored under this name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name in NAMES:
        raise UserError(
            f"scores cannot be stored under the name `{name}`",
            "--name",
            f"use letters, digits, `.`, `_` and `-`, and none of {', '.join(NAMES)}",
        )


def run_results(recipe: Recipe, run: RunDir, ledger: Ledger, found: Mapping[str, Any]) -> dict[str, Any]:
    """The object of `results.json` (design, contract 12), of one seed."""
    spent = ledger.by_stage()

    stages_of = {
        "srt": ("labels", "collect", "srt"),
        **{name: ("labels", name) for name in BASELINES},
        "sdzero": TRAINING_STAGES,
    }

    def took(key: str) -> dict[str, Any]:
        return {
            name: sum(spent.get(stage, {}).get(key, 0) for stage in stages)
            for name, stages in stages_of.items()
        }

    responses = {"base": 0} | took("responses")
    seconds = {"base": 0.0} | took("seconds")
    joules = {name: ledger.joules(*stages) for name, stages in stages_of.items()}
    labels = label_results(run, recipe)
    return {
        "schema": SCHEMA,
        "method": "sdzero",
        "seed": recipe.seed,
        "model": recipe.model.path,
        "task": recipe.name,
        "on": recipe.evaluate.on,
        "evaluations": {name: own["evaluation"] for name, own in found.items()},
        "revision": {name: own["revision"] for name, own in found.items()},
        "differences": _differences(found),
        "responses": {name: responses[name] for name in found if name in responses},
        "seconds": {name: seconds[name] for name in found if name in seconds},
        "joules": {name: joules[name] for name in found if name in joules},
        "budget": ledger.budget_json(TRAINING_STAGES) | {"by_stage": spent},
        **({} if labels is None else {"labels": labels}),
        "divergence": {
            "kind": recipe.distill.divergence,
            "support": "full",
            "temperature": 1.0,
            "normalize": recipe.distill.normalize,
            "on": recipe.distill.divergence_on,
        },
        "versions": run.manifest()["versions"],
        "recipe_sha256": run.manifest()["recipe_sha256"],
    }


def _differences(found: Mapping[str, Any]) -> dict[str, Any]:
    """SD-Zero minus each other model, paired over distinct questions."""
    if "sdzero" not in found:
        return {}
    own = found["sdzero"]["per_question"]
    against = {}
    for name, other in found.items():
        if name == "sdzero":
            continue
        shared = [q for q in own if q in other["per_question"]]
        difference = paired_difference(
            [_mean(own[q]) for q in shared], [_mean(other["per_question"][q]) for q in shared]
        )
        against[name] = {
            "difference": difference.difference,
            "interval": list(difference.interval),
            "p": difference.p,
        }
    return against


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def over_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds, each with its 95% interval over seeds (None for one seed)."""
    names = [name for name in NAMES if all(name in one["evaluations"] for one in results)]

    def spread(values: Sequence[float]) -> dict[str, Any]:
        interval = interval_over_seeds(values)
        return {"mean": _mean(values), "interval": None if interval is None else list(interval)}

    evaluations = {
        name: {
            key: spread([one["evaluations"][name][key] for one in results])
            for key in ("avg", "pass_at_k", "mean_tokens")
        }
        for name in names
    }
    revision = {
        name: {
            key: spread([one["revision"][name][key] for one in results])
            for key in ("first", "revised", "correction_rate", "regression_rate")
        }
        for name in names
    }
    differences = {
        f"sdzero-{name}": spread(
            [one["evaluations"]["sdzero"]["avg"] - one["evaluations"][name]["avg"] for one in results]
        )
        for name in names
        if name != "sdzero" and "sdzero" in names
    }
    if {"srt", "base"} <= set(names):
        differences["srt-base"] = spread(
            [one["evaluations"]["srt"]["avg"] - one["evaluations"]["base"]["avg"] for one in results]
        )
    if {"srt", "sdzero"} <= set(names):
        ratios = [
            one["evaluations"]["sdzero"]["mean_tokens"] / one["evaluations"]["srt"]["mean_tokens"]
            for one in results
        ]
        differences["length sdzero/srt"] = spread(ratios)

    def joules_of(name: str) -> dict[str, Any] | None:
        measured = [one.get("joules", {}).get(name) for one in results]
        return None if None in measured else spread(measured)

    first = results[0]
    return {
        "schema": SCHEMA,
        "method": "sdzero",
        "seeds": [one["seed"] for one in results],
        "model": first["model"],
        "task": first["task"],
        "on": first["on"],
        "questions": first["evaluations"]["base"]["questions"],
        "k": first["evaluations"]["base"]["k"],
        "evaluations": evaluations,
        "revision": revision,
        "differences": differences,
        "responses": {name: spread([one["responses"][name] for one in results]) for name in names},
        "seconds": {name: spread([one["seconds"][name] for one in results]) for name in names},
        "joules": {name: joules_of(name) for name in names},
        "energy": sources_of(one["budget"].get("energy") for one in results),
        "versions": first["versions"],
        "recipe_sha256": [one["recipe_sha256"] for one in results],
    }


def results_table(results: Mapping[str, Any]) -> Table:
    """The table of one seed."""
    any_evaluation = next(iter(results["evaluations"].values()))
    title = (
        f"{results['task']}, seed {results['seed']}: {any_evaluation['questions']} distinct"
        f" {results['on']} questions"
    )
    joules = results["joules"]
    is_measured = any(one is not None for one in joules.values())
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.caption = energy_text(results["budget"]["energy"])
    k = any_evaluation["k"]
    for column in (
        "",
        f"avg@{k}",
        "s.e.",
        f"pass@{k}",
        "tokens",
        "correction",
        "regression",
        "responses",
        "s",
        *(["kJ"] if is_measured else []),
    ):
        table.add_column(column, justify="left" if not column else "right")
    for name, label in NAMES.items():
        if name not in results["evaluations"]:
            continue
        score, revision = results["evaluations"][name], results["revision"][name]
        table.add_row(
            label,
            f"{score['avg']:.1%}",
            f"{score['se']:.1%}",
            f"{score['pass_at_k']:.1%}",
            f"{score['mean_tokens']:.1f}",
            f"{revision['correction_rate']:.1%}" if revision else "",
            f"{revision['regression_rate']:.1%}" if revision else "",
            f"{results['responses'].get(name, 0):,}",
            f"{results['seconds'].get(name, 0):.0f}",
            *([kilojoules(joules.get(name))] if is_measured else []),
        )
    return table


def kilojoules(joules: float | None) -> str:
    """A cell of measured energy; empty where it was not measured, or nothing was spent."""
    return "" if joules is None else f"{joules / 1e3:,.2f}"


def seeds_table(summary: Mapping[str, Any]) -> Table:
    """The table of several seeds: means, and 95% intervals over seeds."""
    k = summary["k"]
    table = Table(
        title=f"{summary['task']}, seeds {summary['seeds']}: {summary['questions']} distinct {summary['on']}"
        " questions,"
        " mean [95% interval over seeds]",
        title_justify="left",
    )
    joules = summary["joules"]
    is_measured = any(one is not None for one in joules.values())
    table.caption, table.caption_justify = energy_text(summary["energy"]), "left"
    names = ("", f"avg@{k}", f"pass@{k}", "tokens", "correction", "regression", "responses", "s")
    for column in (*names, *(["kJ"] if is_measured else [])):
        table.add_column(column, justify="left" if not column else "right")

    def cell(spread: Mapping[str, Any], form: str) -> str:
        text = format(spread["mean"], form)
        if spread["interval"] is None:
            return text
        low, high = spread["interval"]
        return f"{text} [{format(low, form)}, {format(high, form)}]"

    for name, label in NAMES.items():
        if name not in summary["evaluations"]:
            continue
        score, revision = summary["evaluations"][name], summary["revision"][name]
        table.add_row(
            label,
            cell(score["avg"], ".1%"),
            cell(score["pass_at_k"], ".1%"),
            cell(score["mean_tokens"], ".1f"),
            f"{revision['correction_rate']['mean']:.1%}",
            f"{revision['regression_rate']['mean']:.1%}",
            f"{summary['responses'][name]['mean']:,.0f}",
            f"{summary['seconds'][name]['mean']:.0f}",
            *([kilojoules(joules[name] and joules[name]["mean"])] if is_measured else []),
        )
    return table


def difference_lines(results: Mapping[str, Any]) -> list[str]:
    """SD-Zero against each other model, one line each, with its interval."""
    lines = []
    for name, own in results["differences"].items():
        if "p" in own:
            low, high = own["interval"]
            lines.append(
                f"SD-Zero - {NAMES.get(name, name)}: {own['difference']:+.1%}"
                f" [{low:+.1%}, {high:+.1%}], p = {own['p']:.4f}"
            )
        else:
            form = ".2f" if "/" in name else "+.1%"
            interval = own["interval"]
            shown = "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"
            lines.append(f"{name}: {own['mean']:{form}}{shown}")
    return lines
