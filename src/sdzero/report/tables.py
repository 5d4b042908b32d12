"""The tables of the page, as heads and rows of text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdzero.compare_results import columns, p_value, percent
from sdzero.compare_results import rows as compare_rows
from sdzero.report.source import RunFacts, Sources
from sdzero.report.verdict import comes_out
from sdzero.results import NAMES, over_seeds

Z_95 = 1.959964
"""Half the width of a 95% interval in standard errors."""
FOLLOWS = {"above": "above", "below": "below", "undecided": "not shown to differ"}
"""What the table says of where a difference's interval lies."""


@dataclass(frozen=True)
class Table:
    """A table: its caption, the heads of its columns (the first column holds heads of rows), and its rows."""

    caption: str
    heads: list[str]
    rows: list[list[str]]


def score_tables(sources: Sources) -> list[Table]:
    """Scores with 95% intervals: over the seeds of one recipe, else a table a run."""
    scored = [run for run in sources.runs if run.results is not None]
    if sources.pooled is not None and len(scored) > 1:
        return [_seeds_table(scored)]
    tables = [_run_table(run, run.name if len(sources.runs) > 1 else "") for run in scored]
    return [_side_by_side(scored), *tables] if len(scored) > 1 else tables


def difference_table(against: dict[str, Any], questions: int | None) -> Table:
    """SD-Zero minus each model, with what follows from it."""
    of = "" if questions is None else f", {questions} distinct questions"
    return Table(
        f"SD-Zero minus each other model{of}",
        ["model", "difference", "p", "SD-Zero is"],
        [
            [
                NAMES.get(name, name),
                percent(own["difference"], own["interval"], "+"),
                p_value(own["p"]),
                FOLLOWS[comes_out(own["interval"])],
            ]
            for name, own in against.items()
        ],
    )


def comparison_table(results: dict[str, Any]) -> Table:
    """The table of `sdzero compare`."""
    caption = f"Comparison on {results['family']}: {len(results['seeds'])} seeds, equal {results['match']}"
    heads = columns(results)
    return Table(caption, ["method", *heads[1:]], compare_rows(results))


def study_table(results: dict[str, Any]) -> Table:
    """A study: its rows, and their differences where it has them."""
    against = results["against_reference"]
    return Table(
        f"Study {results['study']} on {results['family']}: {results['asks']}",
        [
            "model",
            f"avg@{results['k']}",
            f"difference from {results['reference']}",
            "p",
            "tokens",
            "responses",
        ],
        [
            [
                own["label"],
                percent(own["mean"], own["interval"]),
                percent(against[name]["difference"], against[name]["interval"], "+")
                if name in against
                else "",
                p_value(against[name]["p"]) if name in against else "",
                f"{own['mean_tokens']:.1f}",
                f"{own['responses']:,.0f}",
            ]
            for name, own in results["rows"].items()
        ],
    )


def _run_table(run: RunFacts, name: str) -> Table:
    results = run.results or {}
    evaluations = results["evaluations"]
    first = next(iter(evaluations.values()))
    rows = []
    for model, label in NAMES.items():
        if model not in evaluations:
            continue
        own, revision = evaluations[model], results["revision"].get(model)
        rows.append(
            [
                label,
                _score(own),
                f"{own['pass_at_k']:.1%}",
                f"{own['mean_tokens']:.1f}",
                f"{revision['correction_rate']:.1%}" if revision else "",
                f"{revision['regression_rate']:.1%}" if revision else "",
                f"{results['responses'].get(model, 0):,}",
                ", ".join(f"{outcome} {count:,}" for outcome, count in own["verdicts"].items()),
            ]
        )
    k = first["k"]
    caption = f"{name}: scores" if name else "Scores"
    return Table(
        f"{caption} on {first['questions']} distinct {results['on']} questions, 95% intervals over questions",
        [
            "model",
            f"avg@{k}",
            f"pass@{k}",
            "tokens",
            "correction",
            "regression",
            "responses to train",
            "verdicts",
        ],
        rows,
    )


def _score(evaluation: dict[str, Any]) -> str:
    """One run's avg@k with its interval over questions."""
    average, half = evaluation["avg"], Z_95 * evaluation["se"]
    return percent(average, (average - half, average + half))


def _seeds_table(runs: Sequence[RunFacts]) -> Table:
    summary = over_seeds([run.results for run in runs if run.results is not None])
    rows = []
    for model, label in NAMES.items():
        if model not in summary["evaluations"]:
            continue
        own, revision = summary["evaluations"][model], summary["revision"][model]
        rows.append(
            [
                label,
                percent(own["avg"]["mean"], own["avg"]["interval"]),
                percent(own["pass_at_k"]["mean"], own["pass_at_k"]["interval"]),
                f"{own['mean_tokens']['mean']:.1f}",
                f"{revision['correction_rate']['mean']:.1%}",
                f"{revision['regression_rate']['mean']:.1%}",
                f"{summary['responses'][model]['mean']:,.0f}",
            ]
        )
    k = summary["k"]
    return Table(
        f"Scores on {summary['questions']} distinct {summary['on']} questions, means over {len(runs)} seeds"
        " with 95% intervals over seeds",
        ["model", f"avg@{k}", f"pass@{k}", "tokens", "correction", "regression", "responses to train"],
        rows,
    )


def _side_by_side(runs: Sequence[RunFacts]) -> Table:
    names = [name for name in NAMES if any(name in (run.results or {})["evaluations"] for run in runs)]

    def cell(run: RunFacts, name: str) -> str:
        own = (run.results or {})["evaluations"].get(name)
        return "" if own is None else _score(own)

    return Table(
        "Scores of the runs side by side, 95% intervals over questions",
        ["model", *(run.name for run in runs)],
        [[NAMES[name], *(cell(run, name) for run in runs)] for name in names],
    )
