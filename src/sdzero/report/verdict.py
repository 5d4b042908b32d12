"""The verdict in a sentence: 'above' means that the 95% interval of the paired difference excludes 0."""

from collections.abc import Mapping
from typing import Any

from sdzero.compare_results import percent
from sdzero.report.source import RunFacts, Sources
from sdzero.results import NAMES


def comes_out(interval: tuple[float, float] | list[float]) -> str:
    """`above`, `below`, or `undecided`: where an interval of differences lies."""
    low, high = interval
    if low > 0:
        return "above"
    return "below" if high < 0 else "undecided"


def verdict_of(sources: Sources) -> list[str]:
    """A sentence for the whole page, or one for each run."""
    if sources.pooled:
        return [sentence(f"Over {len(sources.runs)} seeds", sources.pooled)]
    if len(sources.runs) == 1:
        return [run_sentence(sources.runs[0], "In this run")]
    return [run_sentence(run, f"In {run.name}") for run in sources.runs]


def run_sentence(run: RunFacts, beginning: str) -> str:
    """The verdict on one run, from its `results.json`."""
    if run.results is None:
        return f"{beginning} nothing has been evaluated yet, so there is no verdict."
    if "sdzero" not in run.results["evaluations"]:
        return f"{beginning} SD-Zero's model has not been scored, so there is no verdict."
    return sentence(beginning, run.results["differences"])


def sentence(beginning: str, against: Mapping[str, Any]) -> str:
    """What SD-Zero's model is above, not shown to differ from, and below."""
    if not against:
        return f"{beginning} SD-Zero was scored alone: there is nothing to set it against."
    groups: dict[str, list[str]] = {"above": [], "undecided": [], "below": []}
    for name, own in against.items():
        difference = percent(own["difference"], own["interval"], "+")
        groups[comes_out(own["interval"])].append(f"{NAMES.get(name, name)} ({difference})")
    words = {
        "above": "is above {}",
        "undecided": "is not shown to differ from {}",
        "below": "is below {}",
    }
    parts = [words[group].format(_listed(names)) for group, names in groups.items() if names]
    return (
        f"{beginning} SD-Zero {', and '.join(parts)}. Differences are paired over distinct questions, with"
        " 95% intervals; above and below mean that the interval excludes 0."
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
