"""Dry runs of the recipes that ship: one step of each stage, and not a file outside the folder."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sdzero.cli import app
from support import environment, micro_recipe, read_jsonl, sdzero

RECIPES = Path(__file__).parents[1] / "recipes"
STEPS = ["srt/round-1/log.jsonl", "distill/log.jsonl", "rft/log.jsonl"]


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ["qwen3-4b-math", "olmo3-7b-math", "demo"])
def test_a_recipe_that_ships_takes_its_steps(name: str, tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    (work / "mine.txt").write_text("untouched")
    surroundings = environment() | {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    for variable in ("HF_HOME", "HF_DATASETS_CACHE", "TORCH_HOME"):
        surroundings.pop(variable, None)
    done = sdzero("run", RECIPES / f"{name}.yaml", "--dry-run", "-o", "dry", cwd=work, env=surroundings)
    assert done.returncode == 0, done.stderr

    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    said = done.stdout.replace("\n", " ")
    assert "Substituted:" in said
    assert f"model {recipe['model']['path']} -> random weights, same architecture" in said
    assert f"data {recipe['data'].get('path', recipe['data']['source'])} -> 2 rows" in said
    assert f"responses of {recipe['distill']['max_new_tokens']} tokens -> 8" in said
    assert f"rewards of the verifier `{recipe['verifier']['name']}`" in said

    for log in STEPS:
        (step,) = [row for row in read_jsonl(work / "dry/run" / log) if "loss" in row]
        assert step["step"] == step["max_steps"] == 1
    results = json.loads((work / "dry/run/results.json").read_text())
    assert set(results["evaluations"]) == {"base", "srt", "sdzero", "rft"}
    assert {path.name for path in work.iterdir()} == {"mine.txt", "dry"}
    assert files_under(home) == set(), "nothing is written outside the folder"
    kept = yaml.safe_load((work / "dry/run/recipe.yaml").read_text())
    for section, key in (("distill", "divergence"), ("srt", "schedule_of_losses"), ("model", "dtype")):
        if key in recipe.get(section, {}):
            assert kept[section][key] == recipe[section][key], "what is tried is the recipe's own"
    assert kept["phrases"] == recipe.get("phrases", kept["phrases"])


def test_a_second_dry_run_starts_afresh_and_can_be_inspected(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["run", str(RECIPES / "qwen3-4b-math.yaml"), "--dry-run", "-o", "dry"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    (tmp_path / "dry/run/left-over").write_text("from the first")
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0, again.output
    assert not (tmp_path / "dry/run/left-over").exists()
    shown = CliRunner().invoke(app, ["inspect", "dry/run"])
    assert shown.exit_code == 0, shown.output
    assert "phase 2" in shown.output


def test_a_folder_that_no_dry_run_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    recipe = micro_recipe(tmp_path)
    for name in ("full", "file"):
        result = CliRunner().invoke(app, ["run", str(recipe), "--dry-run", "-o", str(tmp_path / name)])
        assert result.exit_code == 1
        assert "choose another" in result.stderr
    assert (tmp_path / "full/thesis.tex").read_text() == "years of work"
    assert files_under(tmp_path / "full") == {"thesis.tex"}


def test_an_architecture_that_is_not_known_is_said(tmp_path: Path) -> None:
    recipe = micro_recipe(tmp_path, {"model": {"path": "owner/unknown-model"}})
    result = CliRunner().invoke(app, ["run", str(recipe), "--dry-run", "-o", str(tmp_path / "dry")])
    assert result.exit_code == 1
    assert "does not know the architecture of owner/unknown-model" in result.stderr
    assert "Traceback" not in result.output
