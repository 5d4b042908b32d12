"""A comparison and studies with two processes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from compare_parallel_work import collapse_and_try_again
from data_parallel_work import ledger_of
from in_ranks import in_ranks
from support import environment, micro_recipe, read_jsonl, sdzero

FEW: dict[str, dict[str, Any]] = {
    "data": {"n1": 12, "n2": 8, "test": 4, "tuning": 2},
    "compare": {"rate_factors": [1.0]},
}
METHODS = "base,sft,rft,grpo,grpo@tokens,sdft,negative,srt,sdzero"


def test_a_collapse_is_noted_and_forgotten_once(tmp_path: Path) -> None:
    both = in_ranks(collapse_and_try_again, tmp_path / "run", micro_recipe(tmp_path))
    collapsed = "the mean reward went from 1 to 0"
    for own in both:
        assert own == {"found": [collapsed, collapsed, None], "noted": [True, False, False], "asked": 2}


def in_two(*arguments: str | Path) -> str:
    """Run the command in two processes; its output."""
    environment_of_both = environment() | {"OMP_NUM_THREADS": "1"}
    done = sdzero(*arguments, "--num-processes", "2", env=environment_of_both, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(folder: Path) -> dict[Path, int]:
    """When each model and each batch of responses was written."""
    files = [*folder.rglob("*.safetensors"), *folder.rglob("step-*.jsonl"), *folder.rglob("batch-*.jsonl")]
    return {file: file.stat().st_mtime_ns for file in files}


@pytest.mark.slow
def test_two_processes_compare_and_study(tmp_path: Path) -> None:
    """Every method in one budget; a second call trains nothing; then studies on the comparison's runs."""
    recipe, folder = micro_recipe(tmp_path, FEW), tmp_path / "compare"
    arguments = (recipe, "--methods", METHODS, "--seeds", "1", "-o", folder)
    assert in_two("compare", *arguments).count("Holm-corrected") == 1, "the first process alone prints"
    results = json.loads((folder / "compare.json").read_text())
    assert list(results["methods"]) == METHODS.split(",")
    budget = results["methods"]["sdzero"]["responses"]
    assert results["methods"]["rft"]["responses"] == budget
    for name in ("grpo", "sdft", "negative"):
        assert budget - 16 < results["methods"][name]["responses"] <= budget
    ledger_of(folder / "seed-3")
    for log in (folder / "seed-3").rglob("log.jsonl"):
        steps = [(row["part"], row["step"]) for row in read_jsonl(log) if "loss" in row]
        assert steps == sorted(set(steps)), f"{log} has a step twice"
        assert steps, log
    before = written(folder)
    in_two("compare", *arguments)
    assert written(folder) == before
    for name, row in (("ahead", "ahead"), ("negative", "negative-x1"), ("localization", "sdzero")):
        in_two("study", name, recipe, "--seeds", "1", "-o", folder)
        study = json.loads((folder / f"study-{name}.json").read_text())
        assert row in study["rows"], study["rows"].keys()
    ledger_of(folder / "seed-3")
    assert not [name for name in os.listdir(folder / "seed-3") if name.endswith(".partial")]
