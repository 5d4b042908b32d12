"""`results.json`: the schema that scripts read, figures in their ranges, means and intervals by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sdzero.results import difference_lines, over_seeds, results_table, seeds_table
from support import read_jsonl

MODELS = {"base", "srt", "sdzero", "rft"}
FRACTIONS = ["avg", "se", "pass_at_k"]
RATES = ["first", "revised", "correction_rate", "regression_rate"]


@pytest.fixture(scope="module")
def results(micro_run: Path) -> dict[str, Any]:
    return json.loads((micro_run / "results.json").read_text())


def shown(table: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_the_schema_of_the_design(results: dict[str, Any], micro_run: Path) -> None:
    keys = {"schema", "method", "seed", "model", "task", "on", "evaluations", "revision", "budget"}
    assert keys | {"divergence", "versions", "recipe_sha256"} <= set(results)
    assert (results["schema"], results["method"], results["seed"]) == (1, "sdzero", 3)
    assert (results["model"], results["task"]) == ("tiny", "micro")
    assert set(results["evaluations"]) == set(results["revision"]) == MODELS
    for own in results["evaluations"].values():
        assert all(0 <= own[name] <= 1 for name in FRACTIONS)
        assert (own["k"], own["questions"]) == (2, 6)
        assert 0 < own["mean_tokens"] <= 64
        assert sum(own["verdicts"].values()) == 12
    for own in results["revision"].values():
        assert all(0 <= own[name] <= 1 for name in RATES)
        assert own["first_tokens"] > 0
        assert own["revised_tokens"] > 0
    budget = results["budget"]
    for name in ("responses", "sampled_tokens", "trained_tokens", "seconds"):
        assert budget[name] > 0
    assert budget["joules"] is None
    assert results["divergence"]["kind"] == "reverse"
    assert results["divergence"]["support"] == "full"
    manifest = json.loads((micro_run / "manifest.json").read_text())
    assert results["recipe_sha256"] == manifest["recipe_sha256"]
    assert {"python", "torch", "transformers", "trl"} <= set(results["versions"])


def test_the_counts_are_those_of_the_files(results: dict[str, Any], micro_run: Path) -> None:
    def rows(pattern: str) -> int:
        return sum(len(read_jsonl(path)) for path in micro_run.glob(pattern))

    collected, distilled = rows("collect/**/batch-*.jsonl"), rows("distill/rollouts/*.jsonl")
    assert distilled == 24
    responses = results["responses"]
    assert responses["base"] == 0
    assert responses["srt"] == collected
    assert responses["sdzero"] == collected + distilled == results["budget"]["responses"]
    assert responses["rft"] == responses["sdzero"] == rows("rft/responses/*.jsonl"), "the same budget"
    sampled = sum(
        row["sampled_tokens"]
        for pattern in ("collect/**/batch-*.jsonl", "distill/rollouts/*.jsonl")
        for path in micro_run.glob(pattern)
        for row in read_jsonl(path)
    )
    assert results["budget"]["sampled_tokens"] == sampled


def test_differences_are_those_of_the_scores(results: dict[str, Any]) -> None:
    scores = results["evaluations"]
    assert set(results["differences"]) == MODELS - {"sdzero"}
    for name, own in results["differences"].items():
        assert own["difference"] == pytest.approx(scores["sdzero"]["avg"] - scores[name]["avg"])
        assert own["interval"][0] <= own["difference"] <= own["interval"][1]
        assert 0 < own["p"] <= 1


def test_the_table_says_what_the_file_says(results: dict[str, Any]) -> None:
    table = shown(results_table(results))
    assert "micro, seed 3: 6 distinct test questions" in table
    for name in ("base", "SRT", "SD-Zero", "RFT"):
        assert name in table
    assert f"{results['evaluations']['sdzero']['avg']:.1%}" in table
    lines = difference_lines(results)
    assert len(lines) == 3
    assert lines[0].startswith("SD-Zero - base: ")


def one_seed(results: dict[str, Any], seed: int, avg: float, tokens: float) -> dict[str, Any]:
    """The results with another seed, and another score of SD-Zero."""
    changed = json.loads(json.dumps(results)) | {"seed": seed}
    changed["evaluations"]["sdzero"] |= {"avg": avg, "mean_tokens": tokens}
    changed["evaluations"]["base"] |= {"avg": 0.5}
    changed["evaluations"]["srt"] |= {"avg": 0.6, "mean_tokens": 40.0}
    return changed


def test_means_and_intervals_over_seeds(results: dict[str, Any]) -> None:
    seeds = [one_seed(results, 1, 0.6, 20.0), one_seed(results, 2, 0.8, 30.0)]
    summary = over_seeds(seeds)
    assert summary["seeds"] == [1, 2]
    own = summary["evaluations"]["sdzero"]["avg"]
    assert own["mean"] == pytest.approx(0.7)
    # Student's t at 97.5% with 1 degree of freedom, times the error of the mean of 0.6 and 0.8.
    half = 12.7062 * math.sqrt(0.02 / 2)
    assert own["interval"] == pytest.approx([0.7 - half, 0.7 + half], rel=1e-4)
    assert summary["differences"]["sdzero-base"]["mean"] == pytest.approx(0.2)
    assert summary["differences"]["srt-base"]["mean"] == pytest.approx(0.1)
    assert summary["differences"]["srt-base"]["interval"] == pytest.approx([0.1, 0.1])
    assert summary["differences"]["length sdzero/srt"]["mean"] == pytest.approx((0.5 + 0.75) / 2)
    assert "70.0% [" in shown(seeds_table(summary))
    assert any(line.startswith("sdzero-base: +20.0%") for line in difference_lines(summary))


def test_one_seed_has_no_interval(results: dict[str, Any]) -> None:
    summary = over_seeds([one_seed(results, 1, 0.6, 20.0)])
    assert summary["evaluations"]["sdzero"]["avg"] == {"mean": 0.6, "interval": None}
    assert "60.0%" in shown(seeds_table(summary))
    assert "60.0% [" not in shown(seeds_table(summary))
