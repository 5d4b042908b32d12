"""Dry runs of the recipes that ship: one step of each stage, and not a file outside the folder."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sandboxed import block, needs_sandbox
from sdzero.cli import app
from sdzero.dry_run import two_rows, write_rows
from sdzero.questions.programs import METADATA_KEY
from sdzero.questions.sources import load_questions
from sdzero.recipe import Recipe
from sdzero.recipe_io import load_recipe
from sdzero.verify.code import CodeVerifier
from sdzero.verify.verdict import Outcome
from support import environment, micro_recipe, read_jsonl, sdzero_afresh

RECIPES = Path(__file__).parents[1] / "recipes"
STEPS = ["srt/round-1/log.jsonl", "distill/log.jsonl", "rft/log.jsonl"]


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "name",
    [
        "qwen3-4b-math",
        "demo",
        pytest.param("olmo3-7b-math", marks=pytest.mark.slow),
        pytest.param("qwen3-4b-code", marks=[pytest.mark.slow, needs_sandbox]),
        pytest.param("olmo3-7b-code", marks=needs_sandbox),
    ],
)
def test_a_recipe_that_ships_takes_its_steps(name: str, tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    (work / "mine.txt").write_text("untouched")
    surroundings = environment() | {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    for variable in ("HF_HOME", "HF_DATASETS_CACHE", "TORCH_HOME"):
        surroundings.pop(variable, None)
    done = sdzero_afresh(
        "run", RECIPES / f"{name}.yaml", "--dry-run", "-o", "dry", cwd=work, env=surroundings
    )
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


ODD_SQUARES = "input()\nprint(sum(x * x for x in map(int, input().split()) if x % 2))"
TWO_PIECES = "#include <iostream>\nint main() { int n; std::cin >> n; std::cout << n - 1 << ' ' << 1; }"
PROGRAMS = {
    "codeforces": [ODD_SQUARES, TWO_PIECES],
    "livecodebench": [
        "price, coins = map(int, input().split())\nprint(coins // price)",
        "class Solution:\n    def longestRun(self, nums):\n"
        "        return max([len(list(run)) for _, run in groupby(nums)], default=0)",
    ],
}
"""Right programs for the rows of data sets that have no solutions."""


def code_recipe(source: str) -> Recipe:
    """The code recipe on another of the code data sets."""
    overrides = [f"data.source={source}", "data.path=some/where"]
    if source != "codeforces":
        overrides.append("data.languages=[python]")
    if source == "humaneval":
        overrides += ["data.path=null", "data.max_tests=null"]
    return load_recipe(RECIPES / "qwen3-4b-code.yaml", overrides)


@needs_sandbox
@pytest.mark.parametrize("source", ["codeforces", "livecodebench", "humaneval", "mbpp"])
def test_the_rows_of_a_code_data_set_make_questions_that_right_programs_answer(
    source: str, tmp_path: Path
) -> None:
    recipe = code_recipe(source)
    rows, fields = two_rows(recipe)
    where = write_rows(recipe, rows, tmp_path)
    data = recipe.data.model_copy(update={"fields": fields, "subset": None, **where})
    assert data.source == source, "the rows are read as the real ones would be"
    questions = load_questions(data)
    assert len(questions) == 2
    languages = [question.metadata[METADATA_KEY]["language"] for question in questions]
    assert languages == (["python", "cpp"] if source == "codeforces" else ["python", "python"])
    verifier = CodeVerifier(recipe.verifier.sandbox)
    try:
        for number, (question, language) in enumerate(zip(questions, languages, strict=True)):
            given = question.solution or block(PROGRAMS[source][number], language)
            assert verifier.grade(question, given).outcome is Outcome.CORRECT, question.id
            wrong = verifier.grade(question, block("int main() {}" if language == "cpp" else "", language))
            assert wrong.outcome is not Outcome.CORRECT
    finally:
        verifier.close()


def test_the_rows_of_a_built_in_family_are_its_own_questions(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / "edits.yaml")
    rows, fields = two_rows(recipe)
    data = recipe.data.model_copy(update={"fields": fields, **write_rows(recipe, rows, tmp_path)})
    own = load_questions(recipe.data)[:2]
    assert [(one.text, one.answer, dict(one.metadata)) for one in load_questions(data)] == [
        (one.text, one.answer, dict(one.metadata)) for one in own
    ]


def test_a_machine_that_cannot_run_programs_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    arguments = ["run", str(RECIPES / "qwen3-4b-code.yaml"), "--dry-run", "-o", str(tmp_path / "dry")]
    no_compiler = CliRunner().invoke(app, arguments)
    assert no_compiler.exit_code == 1
    assert "asks for C++, and there is no compiler `g++`" in no_compiler.stderr
    no_sandbox = CliRunner().invoke(app, [*arguments, "data.languages=[python]"])
    assert no_sandbox.exit_code == 1
    assert "bubblewrap is not installed" in no_sandbox.stderr
    assert "apt-get install bubblewrap" in no_sandbox.stderr
