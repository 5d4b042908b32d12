"""Every figure of README.md and docs/results.md: the demo on several seeds, and what its parts do.

    python benchmarks/demo_figures.py --output runs/figures --seeds 3

runs the demo recipe (base, RFT, SRT, SD-Zero), then from each seed's SRT model phase 2 again with one
thing changed: the control phrase held at that of r = 1, or flipped; the paper's reverse divergence; a
second epoch with the teacher synchronised in between, and the same second epoch without; a second round
from the SD-Zero model at half the learning rate, with the teacher synchronised to it; and both phases
with a higher learning rate of SRT. Everything is scored on the same test questions. Results go to
OUTPUT/figures.json; with --write the marked blocks of the documents are filled in. Safe to repeat:
finished parts are not run again.
"""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

from documents import README, ROOT, fill

from sdzero.cli import Lines, report
from sdzero.evaluate.stats import interval_over_seeds, paired_difference
from sdzero.pipeline import open_run
from sdzero.recipe import Recipe
from sdzero.recipe_io import load_recipe
from sdzero.results import over_seeds
from sdzero.run_dir import RunDir

LABELS = {
    "steep srt": "SRT at learning rate 1e-3",
    "steep sdzero": "phase 2 on that SRT model",
}
RECIPE = ROOT / "recipes" / "demo.yaml"
STEEP_RATE = 1e-3
SECOND_ROUND = "second round, teacher synced, half the rate"
VARIANTS = {
    "held": ["distill.phrase_for_reward=held"],
    "flipped": ["distill.phrase_for_reward=flipped"],
    "reverse divergence": ["distill.divergence=reverse"],
    "two epochs, teacher synced": ["distill.epochs=2", "distill.sync=epoch"],
    "two epochs, same teacher": ["distill.epochs=2"],
    SECOND_ROUND: ["distill.learning_rate=1e-4"],
}


def run_seed(folder: Path, seed: int) -> dict[str, Any]:
    """The demo of one seed; returns its results with the rewards of each question."""
    recipe = load_recipe(RECIPE, [f"seed={seed}"])
    with open_run(recipe, folder, report, Lines()) as stages:
        results = stages.run_all()
        results["per_question"] = {
            name: stages.run.read_json(f"evaluate/{name}.json")["per_question"]
            for name in results["evaluations"]
        }
    return results


def run_variant(
    folder: Path, seed: int, overrides: list[str], demo: Path, second_round: bool
) -> dict[str, Any]:
    """Phase 2 again from the demo's SRT model of the same seed, with other settings.

    A second round starts from the demo's SD-Zero model, which is student and teacher then.
    """
    traces = demo / "collect" / "round-1" / "traces.jsonl"
    start = demo / "distill" / "model" if second_round else demo / "srt" / "round-1" / "model"
    recipe: Recipe = load_recipe(
        RECIPE,
        [
            f"seed={seed}",
            f"srt.checkpoint={start}",
            f"distill.rehearsal_traces={traces}",
            *overrides,
        ],
    )
    with open_run(recipe, folder, report, Lines()) as stages:
        stages.distill()
        return stages.evaluate("sdzero", folder / "distill" / "model")


def run_steep_srt(folder: Path, seed: int) -> dict[str, dict[str, Any]]:
    """The demo with another learning rate of SRT; returns the scores of its SRT model and of SD-Zero."""
    recipe = load_recipe(RECIPE, [f"seed={seed}", f"srt.learning_rate={STEEP_RATE}", "rft.enabled=false"])
    with open_run(recipe, folder, report, Lines()) as stages:
        stages.collect(1)
        stages.srt(1)
        stages.distill()
        return {
            "srt": stages.evaluate("srt", stages.srt_folder()),
            "sdzero": stages.evaluate("sdzero", folder / "distill" / "model"),
        }


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and 95% interval over seeds."""
    interval = interval_over_seeds(values)
    return {"mean": sum(values) / len(values), "interval": interval, "values": values}


def mean_over_seeds(rewards: list[dict[str, list[int]]]) -> dict[str, float]:
    """Each question's score, as its mean over seeds and responses."""
    shared = set.intersection(*(set(own) for own in rewards))
    return {q: sum(sum(own[q]) / len(own[q]) for own in rewards) / len(rewards) for q in sorted(shared)}


def against(first: list[dict[str, list[int]]], second: list[dict[str, list[int]]]) -> dict[str, Any]:
    """First minus second, paired over distinct questions on means over seeds."""
    a, b = mean_over_seeds(first), mean_over_seeds(second)
    shared = [question for question in a if question in b]
    found = paired_difference([a[q] for q in shared], [b[q] for q in shared])
    return {"difference": found.difference, "interval": list(found.interval), "p": found.p}


def percent(part: dict[str, Any]) -> str:
    """`mean [low, high]` in per cent."""
    low, high = part["interval"] or (float("nan"), float("nan"))
    return f"{part['mean']:.1%} [{low:.1%}, {high:.1%}]"


def plain(part: dict[str, Any]) -> str:
    """`mean [low, high]` in tokens."""
    low, high = part["interval"] or (float("nan"), float("nan"))
    return f"{part['mean']:.1f} [{low:.1f}, {high:.1f}]"


def demo_block(figures: dict[str, Any]) -> str:
    """The demo's table in Markdown."""
    summary = figures["demo"]
    labels = {"base": "base", "rft": "RFT, same responses", "srt": "SRT (phase 1)", "sdzero": "SD-Zero"}
    lines = [
        f"| {summary['questions']} test questions, {len(summary['seeds'])} seeds | avg@{summary['k']} |"
        f" pass@{summary['k']} | tokens | correction | regression | responses | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, label in labels.items():
        score, revision = summary["evaluations"][name], summary["revision"][name]
        lines.append(
            f"| {label} | {percent(score['avg'])} | {percent(score['pass_at_k'])} |"
            f" {plain(score['mean_tokens'])} | {revision['correction_rate']['mean']:.1%} |"
            f" {revision['regression_rate']['mean']:.1%} | {summary['responses'][name]['mean']:,.0f} |"
            f" {summary['seconds'][name]['mean']:.0f} |"
        )
    lines += ["", "Differences, paired over distinct questions on means over seeds (95% interval):", ""]
    for name, own in figures["paired"].items():
        low, high = own["interval"]
        lines.append(f"- {name}: {own['difference']:+.1%} [{low:+.1%}, {high:+.1%}], p = {own['p']:.4f}")
    ratio = summary["differences"]["length sdzero/srt"]
    low, high = ratio["interval"]
    lines.append(f"- length of SD-Zero's responses over SRT's: {ratio['mean']:.2f} [{low:.2f}, {high:.2f}]")
    return "\n".join(lines)


def variants_block(figures: dict[str, Any], names: list[str]) -> str:
    """The table of variants of phase 2 in Markdown."""
    lines = ["| model | avg | tokens | against SD-Zero |", "|---|---|---|---|"]
    base = figures["demo"]["evaluations"]
    for name, label in (("srt", "SRT, as in the demo"), ("sdzero", "SD-Zero, as in the demo")):
        lines.append(f"| {label} | {percent(base[name]['avg'])} | {plain(base[name]['mean_tokens'])} | |")
    for name in names:
        own = figures["variants"][name]
        low, high = own["against"]["interval"]
        lines.append(
            f"| {LABELS.get(name, name)} | {percent(own['avg'])} | {plain(own['mean_tokens'])} |"
            f" {own['against']['difference']:+.1%} [{low:+.1%}, {high:+.1%}], p = {own['against']['p']:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "figures")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="fill in the documents")
    arguments = parser.parse_args()
    seeds = list(range(arguments.seeds))
    demos, variants = [], {name: [] for name in VARIANTS}
    steep: dict[str, list[dict[str, Any]]] = {"srt": [], "sdzero": []}
    for seed in seeds:
        report(f"seed {seed}")
        folder = arguments.output / f"demo-{seed}"
        demos.append(run_seed(folder, seed))
        for name, overrides in VARIANTS.items():
            report(f"seed {seed}: {name}")
            place = arguments.output / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            variants[name].append(run_variant(place, seed, overrides, folder, name == SECOND_ROUND))
        report(f"seed {seed}: SRT at learning rate {STEEP_RATE}")
        for name, found in run_steep_srt(arguments.output / f"steep-srt-{seed}", seed).items():
            steep[name].append(found)
    rewards = {name: [own["per_question"][name] for own in demos] for name in demos[0]["per_question"]}
    figures: dict[str, Any] = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "demo": over_seeds(demos),
        "seeds": [{name: own["evaluations"][name]["avg"] for name in own["evaluations"]} for own in demos],
        "paired": {
            "SD-Zero - base": against(rewards["sdzero"], rewards["base"]),
            "SRT - base": against(rewards["srt"], rewards["base"]),
            "SD-Zero - RFT": against(rewards["sdzero"], rewards["rft"]),
            "SD-Zero - SRT": against(rewards["sdzero"], rewards["srt"]),
        },
        "variants": {
            name: {
                "avg": spread([one["evaluation"]["avg"] for one in found]),
                "mean_tokens": spread([one["evaluation"]["mean_tokens"] for one in found]),
                "revision": {
                    key: spread([one["revision"][key] for one in found])
                    for key in ("correction_rate", "regression_rate")
                },
                "against": against([one["per_question"] for one in found], rewards["sdzero"]),
            }
            for name, found in (variants | {f"steep {name}": own for name, own in steep.items()}).items()
        },
    }
    RunDir.unlocked(arguments.output).write_json("figures.json", figures)
    phrase = variants_block(figures, ["held", "flipped"])
    sync = variants_block(figures, [SECOND_ROUND, "two epochs, teacher synced", "two epochs, same teacher"])
    divergence = variants_block(figures, ["reverse divergence"])
    steep_block = variants_block(figures, ["steep srt", "steep sdzero"])
    print(json.dumps(figures["seeds"], indent=2))
    for title, block in (
        ("demo", demo_block(figures)),
        ("phrase", phrase),
        ("sync", sync),
        ("divergence", divergence),
        ("steep", steep_block),
    ):
        print(f"\n{title}\n{block}")
    if arguments.write:
        fill(README, {"figures": demo_block(figures)})
        blocks = {
            "figures-demo": demo_block(figures),
            "figures-phrase": phrase,
            "figures-sync": sync,
            "figures-divergence": divergence,
            "figures-steep": steep_block,
        }
        fill(ROOT / "docs" / "results.md", blocks)
        RunDir.unlocked(ROOT / "benchmarks" / "results").write_json("demo_figures.json", figures)


if __name__ == "__main__":
    main()
