"""What a run's labels are worth, from the files that the run left: for `results.json` and for people."""

from collections.abc import Mapping
from typing import Any

from sdzero.recipe import Recipe
from sdzero.run_dir import RunDir

LABELS = "labels"
"""The stage of a run whose recipe asks for labels; a study that needs them beside has a stage of its own."""


def label_results(run: RunDir, recipe: Recipe) -> dict[str, Any] | None:
    """The object `labels` of `results.json`; None in a run with references, or before there are labels."""
    if not recipe.labels.is_majority or not run.path(f"{LABELS}/statistics.json").exists():
        return None
    return {
        "samples": recipe.labels.samples,
        "min_agreement": recipe.labels.min_agreement,
        **run.read_json(f"{LABELS}/statistics.json"),
        "true_rewards": true_rewards_of(run, LABELS),
    }


def true_rewards_of(run: RunDir, stage: str) -> dict[str, Any]:
    """What was noted of true rewards beside the labels of this stage, by the stages that were trained."""
    file = f"{stage}/true_rewards.json"
    return dict(run.read_json(file)) if run.path(file).exists() else {}


def label_lines(statistics: Mapping[str, Any]) -> list[str]:
    """What `statistics.json` says of the labels, a line a fact."""
    left_out = ", ".join(f"{count} {reason}" for reason, count in statistics["left_out"].items() if count)
    agreement = "" if statistics["agreement"] is None else f", mean agreement {statistics['agreement']:.1%}"
    lines = [
        f"{statistics['labelled']:,} of {statistics['questions']:,} questions labelled{agreement}"
        + (f"; left out: {left_out}" if left_out else "")
    ]
    right = statistics["right"]
    if right["of"]:
        lines.append(f"{right['share']:.1%} of {right['of']:,} labels are right by the data's answers")
    missing = statistics["without_answer"]
    if any(missing.values()):
        lines.append(f"questions without an answer in the data: n1 {missing['n1']:,}, n2 {missing['n2']:,}")
    return lines


def true_reward_lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What `true_rewards.json` says, a line a group of responses that have true answers."""
    lines = []
    for stage, groups in found.items():
        for group, own in groups.items():
            if not own["of"]:
                continue
            words = f"{stage}, {group.replace('_', ' ')}: true reward {own['true']:.1%}"
            if "label" in own:
                words += f", by the labels {own['label']:.1%}; the two agree on {own['agree']:.1%}"
            lines.append(f"{words} ({own['of']:,} of {own['all']:,} responses)")
    return lines
