"""lm-evaluation-harness on local tasks; the scores themselves where it is installed."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from sdzero.cli import app
from sdzero.errors import UserError
from sdzero.evaluate.harness import task_files
from sdzero.models import load_model, load_tokenizer
from sdzero.recipe import ModelSettings
from support import micro_recipe

QUESTIONS = ["3 + 4", "12 + 7", "5 * 6", "20 - 8"]


def write_task(folder: Path, answers: list[str], name: str = "sums") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"question": q, "answer": a} for q, a in zip(QUESTIONS, answers, strict=True)]
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["<|never|>"], "max_gen_toks": 48, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(task))
    return file


def own_answers() -> list[str]:
    """What the embedded model says, by transformers alone."""
    model, tokenizer = load_model("tiny", ModelSettings(device="cpu")), load_tokenizer("tiny")
    answers = []
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        made = model.generate(ids, max_new_tokens=48, do_sample=False)[0, ids.shape[1] :]
        answers.append(tokenizer.decode(made, skip_special_tokens=True))
    return answers


def evaluate(folder: Path, recipe: Path, tasks: Path, *more: str) -> Any:
    arguments = ["evaluate", str(recipe), "-o", str(folder / "run"), "--lm-eval", str(tasks), *more]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    "more", [("--suite", "paper8"), ("--audit", "3"), ("--suite-data", "somewhere")], ids=lambda more: more[0]
)
def test_what_does_not_go_with_it_is_refused(tmp_path: Path, more: tuple[str, str]) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "demo.yaml"
    result = evaluate(tmp_path, recipe, tmp_path, *more)
    assert result.exit_code == 1
    assert more[0] in result.stderr
    assert "does not go with --lm-eval" in result.stderr


@pytest.mark.slow
def test_the_harness_scores_a_model_folder_on_a_local_task(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    answers = own_answers()
    assert all(answers)
    answers[3] = "something else"
    task = write_task(tmp_path / "tasks", answers)
    recipe = micro_recipe(tmp_path, {"data": {"n1": 2, "n2": 2, "test": 2}})
    done = evaluate(tmp_path, recipe, task, "--model", "tiny", "--name", "mine")
    assert done.exit_code == 0, done.output
    kept = json.loads((tmp_path / "run/lm_eval/mine.json").read_text())
    assert kept["results"]["sums"]["exact_match,none"] == 0.75
    assert "mine, sums: exact_match,none 0.75" in done.output
    write_task(tmp_path / "tasks", ["0"] * 4, name="sums").write_text(task.read_text() + "\n# changed\n")
    other = evaluate(tmp_path, recipe, task, "--model", "tiny", "--name", "mine")
    assert other.exit_code == 1
    assert "other tasks" in other.stderr


def test_without_the_extra_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "lm_eval" else find(name, *a)
    )
    recipe = micro_recipe(tmp_path, {"data": {"n1": 2, "n2": 2, "test": 2}})
    result = evaluate(tmp_path, recipe, write_task(tmp_path / "tasks", ["0"] * 4), "--model", "tiny")
    assert result.exit_code == 1
    assert "sdzero[lm-eval]" in result.stderr


def test_tasks_are_found_and_faults_are_named(tmp_path: Path) -> None:
    write_task(tmp_path, ["0"] * 4, name="one")
    two = write_task(tmp_path, ["0"] * 4, name="two")
    two.write_text(two.read_text() + "process_results: !function nowhere.run\n")
    assert list(task_files(tmp_path)) == ["one", "two"]
    with pytest.raises(UserError, match="no tasks here"):
        task_files(tmp_path / "nowhere")
    (tmp_path / "two.yaml").write_text("no: task\n")
    with pytest.raises(UserError, match="has no `task`"):
        task_files(tmp_path)
