"""The printed table of a suite: ours, with and without contaminated questions, and the paper's beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sdzero.evaluate.paper_figures import AVERAGE, paper_figures


def print_suite(result: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Print the table, what it leaves out, and where the scores are stored."""
    console.print(suite_table(result))
    for line in (*notes(result), f"scores: {folder}/suites/{result['suite']}.json"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def suite_table(result: Mapping[str, Any]) -> Table:
    """A row for each benchmark and model, and one for each model's average."""
    sampling, names = result["sampling"], list(result["benchmarks"])
    k = sampling["k"]
    table = Table(
        title=f"{result['suite']}: avg@{k} at temperature {sampling['temperature']:g}, up to"
        f" {sampling['max_new_tokens']:,} tokens; [95% interval over questions]",
        title_justify="left",
    )
    paper = {name: _paper(result, name, own["path"], names) for name, own in result["models"].items()}
    columns = ["benchmark", "model", f"avg@{k}", "without trained on", f"pass@{k}", "tokens", "questions"]
    if any(paper.values()):
        columns.append("paper")
    for column in columns:
        table.add_column(column, justify="left" if column in ("benchmark", "model") else "right")
    for benchmark, about in result["benchmarks"].items():
        for name, own in result["models"].items():
            score = own["benchmarks"][benchmark]
            trained_on = sum(about["contamination"].values())
            clean = score["clean"]
            cells = [
                about["title"],
                name,
                _rate(score["avg"], score["interval"]),
                ""
                if not trained_on
                else "all are"
                if clean is None
                else _rate(clean["avg"], clean["interval"]),
                f"{score['pass_at_k']:.1%}",
                f"{score['mean_tokens']:,.0f}",
                f"{score['questions']}{f', {trained_on} trained on' if trained_on else ''}",
            ]
            table.add_row(*_with_paper(cells, columns, paper[name], benchmark))
        table.add_section()
    if len(names) > 1:
        any_trained_on = any(sum(one["contamination"].values()) for one in result["benchmarks"].values())
        for name, own in result["models"].items():
            macro = own["macro"]
            clean = "" if macro["clean_avg"] is None else _rate(macro["clean_avg"], macro["clean_interval"])
            cells = ["average", name, _rate(macro["avg"], macro["interval"])]
            cells += [clean if any_trained_on else "", "", "", ""]
            table.add_row(*_with_paper(cells, columns, paper[name], AVERAGE))
    return table


def _paper(result: Mapping[str, Any], name: str, path: str, benchmarks: Sequence[str]) -> Mapping[str, float]:
    """The paper's figures of a method on the run's model, or of its base model where the folder is that."""
    run = result["paper"]
    if run is not None and name in run["figures"]:
        return dict(run["figures"][name])
    own = paper_figures(path, benchmarks)
    return {} if own is None else dict(own["figures"]["base"])


def _with_paper(
    cells: list[str], columns: Sequence[str], figures: Mapping[str, float], key: str
) -> list[str]:
    if "paper" not in columns:
        return cells
    return [*cells, f"{figures[key]:.1%}" if key in figures else ""]


def _rate(mean: float, interval: Sequence[float] | None) -> str:
    if interval is None:
        return f"{mean:.1%}"
    return f"{mean:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]"


def notes(result: Mapping[str, Any]) -> list[str]:
    """What the table leaves out, a line each: wrong numbers of questions, verdicts that do not count, and
    where the paper's figures are from."""
    lines = []
    for name, about in result["benchmarks"].items():
        if about["expected"] is not None and about["questions"] != about["expected"]:
            lines.append(
                f"WARNING: {about['title']} has {about['expected']} questions, here were {about['questions']}"
            )
        for model, own in result["models"].items():
            verdicts = own["benchmarks"][name]["verdicts"]
            if verdicts.get("error"):
                lines.append(f"{about['title']}, {model}: {verdicts['error']} responses could not be graded")
    if result["paper"] is not None:
        lines.append(
            f"paper: {result['paper']['model']}, arXiv 2604.12002, table 1; which questions it asked is not"
            " known for all benchmarks (docs/benchmarks.md)"
        )
    return lines
