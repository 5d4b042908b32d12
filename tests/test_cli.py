"""Bad input through the real command: what was wrong, where, what to do; no traceback, nothing lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sdzero import tiny
from sdzero.cli import app
from sdzero.recipe_io import load_recipe
from sdzero.run_dir import RunDir
from support import environment, micro_recipe, read_jsonl

RECIPES = Path(__file__).parents[1] / "recipes"

VERIFIERS = """
from sdzero.questions.question import Question
from sdzero.verify.verdict import Outcome, Verdict
from sdzero.verify.verifier import Canary


def always_wrong(question, response):
    return False


def always_right(question, response):
    return True


class Broken:
    name = "broken"

    def grade(self, question, response):
        return Verdict(Outcome.CORRECT)

    def canaries(self):
        return [Canary(Question("c", "1+1", "2"), "3", Outcome.WRONG)]
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, with a module of verifiers that can be imported from it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_verifiers.py").write_text(VERIFIERS)
    return tmp_path


def refused(*arguments: str | Path) -> str:
    """Run the command, which must end with status 1 and an error for people; returns the error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error:")
    assert "to do:" in result.stderr
    return result.stderr


def model_folder(folder: Path) -> Path:
    """A copy of the embedded model's folder, to be spoilt."""
    return Path(shutil.copytree(tiny.model_folder(), folder / "model"))


def jsonl(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The data section of a recipe that reads these rows."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": "jsonl", "path": str(path), "n1": 1, "n2": 1, "tuning": 0, "test": 1}


def test_a_missing_recipe(tmp_path: Path) -> None:
    micro_recipe(tmp_path)
    error = refused("run", tmp_path / "mikro.yaml")
    assert "no such recipe" in error
    assert "micro.yaml" in error


def test_malformed_yaml(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: x\ndata: [1, 2\nseed: 3\n")
    error = refused("collect", tmp_path / "bad.yaml")
    assert "not well-formed YAML" in error
    assert "line 3" in error


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    error = refused("run", micro_recipe(tmp_path, {"distill": {"learning_rat": 1.0}}))
    assert "unknown key `distill.learning_rat`" in error
    assert "did you mean `distill.learning_rate`" in error
    error = refused("run", micro_recipe(tmp_path), "distil.epochs=2")
    assert "`distil" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["run", "collect", "srt", "distill", "evaluate"])
def test_a_model_folder_that_is_not_there(tmp_path: Path, command: str) -> None:
    error = refused(command, micro_recipe(tmp_path, {"model": {"path": "models/none/here"}}))
    assert "there is no model folder here" in error
    assert "models/none/here" in error


def test_a_model_folder_without_a_configuration(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    (folder / "config.json").unlink()
    error = refused("run", micro_recipe(tmp_path, {"model": {"path": str(folder)}}))
    assert "no config.json" in error
    assert str(folder) in error


def test_damaged_weights(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    (folder / "model.safetensors").write_bytes(b"spoilt")
    error = refused("run", micro_recipe(tmp_path, {"model": {"path": str(folder)}}))
    assert "the model cannot be loaded" in error
    assert str(folder) in error


def test_a_tokenizer_without_a_chat_template(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    (folder / "chat_template.jinja").unlink()
    error = refused("run", micro_recipe(tmp_path, {"model": {"path": str(folder)}}))
    assert "no chat template" in error
    assert str(folder) in error


def test_a_template_without_an_end_token(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    template = (folder / "chat_template.jinja").read_text()
    assert "<|im_end|>" in template
    (folder / "chat_template.jinja").write_text(template.replace("<|im_end|>", ""))
    error = refused("run", micro_recipe(tmp_path, {"model": {"path": str(folder)}}))
    assert "no special token" in error
    assert "end-of-turn token" in error


def test_a_question_without_an_answer_names_its_line(tmp_path: Path) -> None:
    rows = [{"question": "1+1", "answer": "2"}, {"question": "1+2", "answer": ""}]
    error = refused("run", micro_recipe(tmp_path, {"data": jsonl(tmp_path, rows)}))
    assert "the answer in column `answer` is empty" in error
    assert "rows.jsonl:2" in error


def test_an_empty_data_set(tmp_path: Path) -> None:
    error = refused("run", micro_recipe(tmp_path, {"data": jsonl(tmp_path, [])}))
    assert "there is no question in the data" in error
    assert "rows.jsonl" in error


def test_too_few_questions(tmp_path: Path) -> None:
    rows = [{"question": "1+1", "answer": "2"}]
    error = refused("run", micro_recipe(tmp_path, {"data": jsonl(tmp_path, rows)}))
    assert "3 distinct questions are needed, but there are 1" in error


def test_an_over_long_prompt_is_refused_before_sampling(tmp_path: Path) -> None:
    rows = [{"question": f"{number} + 1", "answer": str(number + 1)} for number in range(8)]
    rows += [{"question": "1+" * 400 + "1", "answer": "401"}]
    data = jsonl(tmp_path, rows) | {"n1": 7}
    output = tmp_path / "run"
    # Which set the long question falls into depends on its hash; all but one question are collected on.
    for seed in range(20):
        error_or_none = _long_question_in_n1(data, seed)
        if error_or_none:
            break
    recipe = micro_recipe(tmp_path, {"data": data | {"split_seed": seed}, "collect": {"batch_size": 1}})
    error = refused("collect", recipe, "-o", output)
    assert "do not fit the model's context of" in error
    assert "question 9" in error
    assert not list(output.rglob("batch-*.jsonl"))


def _long_question_in_n1(data: dict[str, Any], seed: int) -> bool:
    from sdzero.questions.sources import load_questions
    from sdzero.questions.splits import split_questions
    from sdzero.recipe import DataSettings

    settings = DataSettings.model_validate(data | {"split_seed": seed})
    ids = [question.id for question in split_questions(load_questions(settings), settings).n1]
    return "9" in ids[1:]


def test_collection_where_everything_is_wrong(tmp_path: Path) -> None:
    recipe = micro_recipe(tmp_path, {"verifier": {"name": "own_verifiers:always_wrong"}, "data": {"n1": 4}})
    output = tmp_path / "run"
    error = refused("run", recipe, "collect.max_new_tokens=48", "-o", output)
    assert "no revision was verified correct" in error
    assert "'wrong'" in error
    batches = {path: path.read_bytes() for path in output.rglob("batch-*.jsonl")}
    assert len(batches) == 2, "finished batches are kept"
    assert json.loads((output / "collect/round-1/statistics.json").read_text())["kept"] == 0
    responses = read_jsonl(output / "ledger.jsonl")
    refused("run", recipe, "collect.max_new_tokens=48", "-o", output)
    assert {path: path.read_bytes() for path in output.rglob("batch-*.jsonl")} == batches
    assert read_jsonl(output / "ledger.jsonl") == responses, "nothing is sampled a second time"


def test_collection_where_everything_is_right_and_right_is_not_revised(tmp_path: Path) -> None:
    changes = {"verifier": {"name": "own_verifiers:always_right"}, "collect": {"revise_correct": False}}
    recipe = micro_recipe(tmp_path, changes | {"data": {"n1": 4}})
    error = refused("run", recipe, "-o", tmp_path / "run")
    assert "no initial response could be revised" in error
    assert "'correct'" in error
    assert len(list((tmp_path / "run").rglob("batch-*.jsonl"))) == 1


def test_stages_before_what_they_need(tmp_path: Path) -> None:
    recipe, output = micro_recipe(tmp_path), tmp_path / "run"
    assert "run `sdzero collect` first" in refused("srt", recipe, "-o", output)
    assert "run `sdzero srt` first" in refused("distill", recipe, "-o", output)
    assert "run `sdzero srt` first" in refused("evaluate", recipe, "-o", output)
    assert not list(output.rglob("batch-*.jsonl")), "the base model is not scored for nothing"
    assert "there is no round 2" in refused("collect", recipe, "-o", output, "--round", "2")
    assert "there is no round 2" in refused("srt", recipe, "-o", output, "--round", "2")


def test_rehearsal_without_traces(tmp_path: Path) -> None:
    recipe = micro_recipe(tmp_path, {"srt": {"checkpoint": str(tiny.model_folder())}})
    assert "distill.rehearsal_weight" in refused("distill", recipe)


def test_a_teacher_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    changes = {"distill": {"teacher": "empty", "rehearsal_weight": 0.0}, "srt": {"checkpoint": "tiny"}}
    error = refused("distill", micro_recipe(tmp_path, changes), "-o", tmp_path / "run")
    assert "no config.json" in error
    assert "empty" in error


def test_a_folder_in_use(tmp_path: Path) -> None:
    recipe, output = micro_recipe(tmp_path), tmp_path / "run"
    with RunDir.open(output, load_recipe(recipe)):
        before = sorted(output.rglob("*"))
        error = refused("run", recipe, "-o", output)
        assert "another process" in error
        assert str(output) in error
        assert sorted(output.rglob("*")) == before


def test_a_changed_recipe_on_an_old_folder(tmp_path: Path) -> None:
    recipe, output = micro_recipe(tmp_path), tmp_path / "run"
    RunDir.open(output, load_recipe(recipe)).close()
    error = refused("run", recipe, "distill.epochs=3", "-o", output)
    assert "different recipe" in error
    assert "distill.epochs: 1 -> 3" in error


def test_a_folder_with_other_things_in_it(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("years of work")
    error = refused("run", micro_recipe(tmp_path), "-o", tmp_path / "full")
    assert "not a run" in error
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no_such_module:grade", "cannot be imported"),
        ("own_verifiers:always_rigt", "did you mean `own_verifiers:always_right`"),
        ("maths", "did you mean `math`"),
    ],
)
def test_a_verifier_that_is_not_there(tmp_path: Path, name: str, told: str) -> None:
    error = refused("run", micro_recipe(tmp_path, {"verifier": {"name": name}}), "-o", tmp_path / "run")
    assert told in error
    assert not list((tmp_path / "run").rglob("batch-*.jsonl"))


def test_a_verifier_that_fails_its_canaries_stops_the_run(tmp_path: Path) -> None:
    recipe = micro_recipe(tmp_path, {"verifier": {"name": "own_verifiers:Broken"}})
    error = refused("run", recipe, "-o", tmp_path / "run")
    assert "fails on 1 of 1 responses whose outcome is known" in error
    assert not list((tmp_path / "run").rglob("batch-*.jsonl"))


def test_scores_are_stored_under_names_of_their_own(tmp_path: Path) -> None:
    recipe, output = micro_recipe(tmp_path), tmp_path / "run"
    for name in ("base", "sdzero", "../escape", ""):
        error = refused("evaluate", recipe, "-o", output, "--model", tiny.model_folder(), "--name", name)
        assert "cannot be stored under the name" in error


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", str(tmp_path / "none.yaml"), "--debug"])
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "UserError"


def in_a_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60
    )


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["run", "none.yaml"], ["plan.yaml"]])
def test_help_and_recipe_errors_import_no_torch(arguments: list[str]) -> None:
    done = in_a_process(
        f"import sys; sys.argv = ['sdzero', *{arguments!r}]\n"
        "from sdzero.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr


def test_help_names_every_command_and_an_example() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for name in ("run", "collect", "srt", "distill", "evaluate", "inspect"):
        assert name in result.output
    assert "Example" in CliRunner().invoke(app, ["run", "--help"]).output


def test_every_recipe_that_ships_is_valid() -> None:
    recipes = sorted(RECIPES.glob("*.yaml"))
    assert recipes
    assert [load_recipe(path).name for path in recipes] == [path.stem for path in recipes]
