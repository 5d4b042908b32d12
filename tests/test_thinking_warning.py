"""A thinking model is warned of, once, by a run, a dry run and the doctor; and it is never refused."""

import shutil
from pathlib import Path

import pytest

from sdzero import tiny
from sdzero.dry_run import dry_run
from sdzero.onprem import doctor
from sdzero.onprem.doctor import Finding, Subject
from sdzero.pipeline import open_run
from sdzero.recipe import Recipe
from sdzero.recipe_io import load_recipe
from support import micro_recipe


@pytest.fixture
def thinking_folder(tmp_path: Path) -> Path:
    """The embedded model under a template that opens `<think>`, as those of thinking models do."""
    folder = Path(shutil.copytree(tiny.model_folder(), tmp_path / "model"))
    template = folder / "chat_template.jinja"
    asked = "'<|im_start|>assistant\n'"
    assert asked in template.read_text()
    template.write_text(template.read_text().replace(asked, "'<|im_start|>assistant\n<think>\n'"))
    return folder


def recipe_of(tmp_path: Path, model: Path | str, **distill: str) -> Recipe:
    return load_recipe(micro_recipe(tmp_path, {"model": {"path": str(model)}, "distill": distill}))


def reported(recipe: Recipe, folder: Path) -> list[str]:
    """What opening a run says."""
    lines: list[str] = []
    with open_run(recipe, folder, lines.append, lambda *counts: None):
        pass
    return lines


def test_a_run_warns_once_and_goes_on(tmp_path: Path, thinking_folder: Path) -> None:
    (line,) = reported(recipe_of(tmp_path, thinking_folder), tmp_path / "run")
    assert line.startswith("warning: this is a thinking model (the prompt ends within `<think>`)")
    assert "distill.divergence_on" in line


def test_who_has_restricted_the_divergence_or_has_another_model_is_not_warned(
    tmp_path: Path, thinking_folder: Path
) -> None:
    restricted = recipe_of(tmp_path, thinking_folder, divergence_on="final_answer")
    assert reported(restricted, tmp_path / "restricted") == []
    assert reported(recipe_of(tmp_path, "tiny"), tmp_path / "plain") == []


def test_a_dry_run_warns_too(tmp_path: Path, thinking_folder: Path) -> None:
    lines: list[str] = []
    dry_run(recipe_of(tmp_path, thinking_folder), tmp_path / "dry", lines.append, lambda *counts: None)
    assert sum("this is a thinking model" in line for line in lines) == 1


def test_the_doctor_tells_it_as_a_finding_that_holds(tmp_path: Path, thinking_folder: Path) -> None:
    found = list(doctor.model(Subject(recipe_of(tmp_path, thinking_folder))))
    assert found[0] == Finding("model", True, str(thinking_folder))
    assert (found[1].name, found[1].held) == ("thinking", True)
    assert found[1].detail.startswith("warning: this is a thinking model")
    _, chosen = doctor.model(Subject(recipe_of(tmp_path, thinking_folder, divergence_on="final_answer")))
    assert chosen.held
    assert chosen.detail.startswith("a thinking model, with distill.divergence_on=final_answer")
