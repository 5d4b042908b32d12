"""Whole runs with LoRA: what each stage keeps, and that the stage after starts there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from sdzero.adapters import ADAPTER_WEIGHTS, is_adapter_folder
from sdzero.cli import app
from sdzero.method.teacher import fingerprint
from sdzero.models import load_model
from sdzero.recipe import ModelSettings
from support import micro_recipe, sdzero

CPU = ModelSettings(device="cpu")
FEW: dict[str, dict[str, Any]] = {
    "data": {"n1": 12, "n2": 8, "test": 2, "tuning": 0},
    "distill": {"rehearsal_weight": 0.0, "sync": "steps", "sync_every": 1, "learning_rate": 1e-2},
    "srt": {"learning_rate": 1e-2},
    "rft": {"enabled": False},
}


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def teacher_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "stages/distill.json").read_text())["info"])


@pytest.mark.parametrize("keep", ["merged", "adapter"])
def test_a_run_keeps_what_the_recipe_says(tmp_path: Path, keep: str) -> None:
    changes = FEW | {"lora": {"rank": 4, "keep": keep}}
    folder = tmp_path / "run"
    shown = run("run", micro_recipe(tmp_path, changes), "-o", folder)
    srt, distilled = folder / "srt/round-1", folder / "distill"
    base, first, last = (load_model(str(path), CPU) for path in ("tiny", srt / "model", distilled / "model"))
    assert len({fingerprint(model) for model in (base, first, last)}) == 3
    for stage in (srt, distilled):
        assert is_adapter_folder(stage / "model") == (keep == "adapter")
        assert not list(stage.glob("checkpoints*"))
        small = stage / ("model" if keep == "adapter" else "adapter") / ADAPTER_WEIGHTS
        assert small.stat().st_size < 400_000
    assert teacher_of(folder)["syncs"] == 1
    results = json.loads((folder / "results.json").read_text())
    assert set(results["evaluations"]) == {"base", "srt", "sdzero"}
    if keep == "merged":
        # The header names the teacher: it is the model that SRT kept, adapter included.
        assert f"teacher {fingerprint(first)}" in " ".join(shown.split())
        torch.testing.assert_close(
            AutoModelForCausalLM.from_pretrained(distilled / "model").state_dict(), last.state_dict()
        )


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["merged", "adapter"])
def test_every_method_trains_an_adapter(tmp_path: Path, keep: str) -> None:
    changes = FEW | {"lora": {"rank": 4, "keep": keep}, "compare": {"rate_factors": [1.0]}}
    changes["sdft"] = {"sync": "steps", "sync_every": 1}
    changes["grpo"] = {"kl_weight": 0.1}
    methods = "base,sft,rft,grpo,sdft,negative,srt,sdzero"
    recipe = micro_recipe(tmp_path, changes)
    done = sdzero(
        "compare", recipe, "--methods", methods, "--seeds", "1", "-o", tmp_path / "out", timeout=600
    )
    assert done.returncode == 0, done.stderr
    base = fingerprint(load_model("tiny", CPU))
    for method in ("sft", "rft", "grpo", "sdft", "negative", "distill"):
        (folder,) = (tmp_path / "out").glob(f"seed-*/{method}*/model")
        assert is_adapter_folder(folder) == (keep == "adapter")
        if method != "negative":
            assert fingerprint(load_model(str(folder), CPU)) != base


@pytest.mark.slow
def test_a_killed_srt_with_lora_goes_on_to_the_same_adapter(tmp_path: Path) -> None:
    from test_kill_resume import run_until

    changes = FEW | {"lora": {"rank": 4, "dropout": 0.1, "keep": "adapter"}}
    recipe = micro_recipe(tmp_path, changes)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert sdzero("run", recipe, "-o", whole).returncode == 0
    for file in ("srt/round-1/checkpoints-0/checkpoint-2/complete.json", "distill/checkpoints/checkpoint-2"):
        run_until(killed / file, ["run", recipe, "-o", killed])
    assert sdzero("run", recipe, "-o", killed).returncode == 0
    for stage in ("srt/round-1/model", "distill/model"):
        weights = [(folder / stage / ADAPTER_WEIGHTS).read_bytes() for folder in (whole, killed)]
        assert weights[0] == weights[1]
