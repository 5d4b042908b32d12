"""`sdzero init`: what is guessed of a model and of data, and that the recipe loads and is fit for a run."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from sdzero import tiny
from sdzero.errors import UserError
from sdzero.first_recipe import data_look
from sdzero.first_recipe.data_look import look_at_data
from sdzero.first_recipe.field_guess import guess_fields
from sdzero.first_recipe.model_look import look_at_model
from sdzero.first_recipe.recipe_text import BOX, Sizes, chat_of
from sdzero.first_recipe.write import write_first_recipe
from sdzero.method.roles import Roles
from sdzero.method.thinking import thinking_of
from sdzero.models import load_tokenizer
from sdzero.onprem.doctor import examine
from sdzero.questions.question import Question
from sdzero.questions.sources import load_questions
from sdzero.questions.splits import split_questions
from sdzero.recipe import PhraseSettings
from sdzero.recipe_io import load_recipe
from sdzero.verify.verdict import Outcome, Verdict
from support import environment

ARCHITECTURES = Path(tiny.__file__).parents[1] / "architectures"


def sums(count: int = 40) -> list[dict[str, Any]]:
    return [
        {
            "problem": f"What is {number} + {number}?",
            "answer": 2 * number,
            "level": "easy",
            "uuid": f"u{number}",
        }
        for number in range(count)
    ]


def write_jsonl(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_csv(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def write_parquet(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    return file


class PoolInPlace:
    """The verifier's pool, without its process: answers with letters in them are read wrongly."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """It needs nothing."""

    def __enter__(self) -> "PoolInPlace":
        return self

    def __exit__(self, *error: object) -> None:
        """There is nothing to end."""

    def grade(self, items: Sequence[tuple[Question, str]]) -> list[Verdict]:
        return [
            Verdict(Outcome.WRONG if any(map(str.isalpha, question.answer)) else Outcome.CORRECT)
            for question, _ in items
        ]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_look, "VerifierPool", PoolInPlace)


@pytest.mark.parametrize(
    ("suffix", "write"), [("jsonl", write_jsonl), ("csv", write_csv), ("parquet", write_parquet)]
)
@pytest.mark.usefixtures("quick")
def test_the_recipe_loads_and_its_questions_too(
    tmp_path: Path, suffix: str, write: Callable[[Path, Sequence[dict[str, Any]]], Path]
) -> None:
    data = write(tmp_path / f"sums.{suffix}", sums())
    written = write_first_recipe(str(tiny.model_folder()), str(data), tmp_path / "recipe.yaml")
    recipe = load_recipe(written.file)
    fields = recipe.data.fields
    assert (fields.question, fields.answer, fields.id, fields.kind) == ("problem", "answer", "uuid", "level")
    questions = load_questions(recipe.data)
    assert len(questions) == 40
    sets = split_questions(questions, recipe.data)
    assert len(sets.n1) + len(sets.n2) + len(sets.tuning) + len(sets.test) == 40
    assert recipe.verifier.name == "math"
    assert recipe.chat.answer_instruction == BOX
    assert any("`problem`: named like a question; 40 of 40 rows" in line for line in written.seen)
    assert any("40 questions are few" in line for line in written.check)


def test_doctor_passes_what_init_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(tiny.model_folder(), tmp_path / "model")
    write_jsonl(tmp_path / "sums.jsonl", sums())
    written = write_first_recipe(str(model), "sums.jsonl", tmp_path / "recipe.yaml")
    assert "`math` reads 40 of 40 answers" in "\n".join(written.seen)
    findings = examine(load_recipe(written.file))
    assert {finding.name: finding.detail for finding in findings if not finding.held} == {}
    assert {"data", "verifier", "model"} <= {finding.name for finding in findings}


@pytest.mark.usefixtures("quick")
def test_nothing_is_overwritten(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "sums.jsonl", sums())
    (tmp_path / "recipe.yaml").write_text("mine")
    with pytest.raises(UserError, match="not overwritten"):
        write_first_recipe("tiny", str(data), tmp_path / "recipe.yaml")
    assert (tmp_path / "recipe.yaml").read_text() == "mine"


@pytest.mark.usefixtures("quick")
def test_duplicates_conflicts_and_empty_rows_are_counted_and_left_out(tmp_path: Path) -> None:
    rows = sums(20)
    rows = [{key: row[key] for key in ("problem", "answer")} for row in rows]
    rows += [rows[0], {**rows[1], "answer": 99}, {"problem": "What is 7 + 1?", "answer": None}]
    data = look_at_data(str(write_jsonl(tmp_path / "sums.jsonl", rows)))
    assert (data.duplicates, data.conflicts, data.empty, len(data.questions)) == (1, 1, 1, 19)
    written = write_first_recipe("tiny", data.path, tmp_path / "recipe.yaml")
    recipe = load_recipe(written.file)
    assert recipe.data.faulty == "drop"
    assert len(load_questions(recipe.data)) == 19


def test_fields_by_name_and_type_with_the_user_having_the_last_word() -> None:
    rows = [
        {
            "prompt": f"p{n}",
            "problem": f"What is {n}?",
            "solution": "long " * 60,
            "ground_truth": str(n),
            "n": n,
        }
        for n in range(4)
    ]
    fields = guess_fields(rows, "data")
    assert (fields.question, fields.answer, fields.solution) == ("problem", "ground_truth", "solution")
    assert fields.others == {"question": ["prompt"], "answer": ["solution"]}
    fields = guess_fields(rows, "data", question="prompt", answer="n")
    assert (fields.question, fields.answer) == ("prompt", "n")
    assert "named by you" in fields.evidence["answer"]
    with pytest.raises(UserError, match="there is no column `q`") as told:
        guess_fields(rows, "data", question="q")
    assert "--question-field" in str(told.value)
    with pytest.raises(UserError, match="no column looks like the answer"):
        guess_fields([{"question": "x", "number": 3}], "data")


@pytest.mark.usefixtures("quick")
def test_data_that_a_run_could_not_use_is_refused(tmp_path: Path) -> None:
    def refused(rows: list[dict[str, Any]]) -> str:
        with pytest.raises(UserError) as told:
            look_at_data(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
        assert told.value.todo
        return str(told.value)

    worked = [{"question": f"q{n}", "answer": f"so it is\n#### {n}"} for n in range(10)]
    assert "worked solutions that end in `#### ANSWER`" in refused(worked)
    prose = [{"question": f"q{n}", "answer": "it depends"} for n in range(10)]
    assert "reads 0 of 10 answers" in refused(prose)
    good = [{"question": f"q{n}", "answer": "4"} for n in range(3)]
    assert "row 4" in refused([*good, {"question": " ", "answer": "4"}])
    assert "row 4" in refused([*good, {"question": "q", "answer": ["4"]}])
    assert "no row" in refused([])
    for name, told in (("none.jsonl", "no such file"), ("rows.json", "cannot be looked at")):
        (tmp_path / "rows.json").touch()
        with pytest.raises(UserError, match=told):
            look_at_data(str(tmp_path / name))


def test_tests_puzzles_and_code_data_sets_choose_their_verifiers(tmp_path: Path) -> None:
    program = {"language": "python", "tests": {"kind": "stdio", "cases": [{"input": "1", "output": "1"}]}}
    rows = [{"question": f"q{n}", "answer": "see tests", "program": program} for n in range(3)]
    data = look_at_data(str(write_jsonl(tmp_path / "programs.jsonl", rows)))
    assert (data.verifier, data.source, data.metadata) == ("code", "jsonl", ("program",))
    entry = {"question": "1 + 1", "answer": "2", "metadata": {"source_dataset": "chain_sum"}}
    data = look_at_data(str(write_jsonl(tmp_path / "puzzles.jsonl", [entry])))
    assert (data.verifier, data.source, data.tasks) == ("puzzle", "reasoning_gym", ("chain_sum",))
    rows_of_mbpp = (ARCHITECTURES / "rows/mbpp.jsonl").read_text()
    (tmp_path / "mbpp.jsonl").write_text(rows_of_mbpp)
    data = look_at_data(str(tmp_path / "mbpp.jsonl"))
    assert (data.verifier, data.source) == ("code", "mbpp")


@pytest.mark.usefixtures("quick")
def test_recipes_for_programs_and_puzzles_load(tmp_path: Path) -> None:
    entries = [
        {"question": f"{n} + 1", "answer": str(n + 1), "metadata": {"source_dataset": "chain_sum"}}
        for n in range(12)
    ]
    written = write_first_recipe(
        "tiny", str(write_jsonl(tmp_path / "puzzles.jsonl", entries)), tmp_path / "puzzles.yaml"
    )
    assert load_recipe(written.file).data.tasks == ["chain_sum"]
    program = {"language": "python", "tests": {"kind": "stdio", "cases": [{"input": "1", "output": "1"}]}}
    rows = [{"question": f"q{n}", "answer": "see tests", "program": program} for n in range(12)]
    written = write_first_recipe(
        "tiny", str(write_jsonl(tmp_path / "code.jsonl", rows)), tmp_path / "code.yaml"
    )
    recipe = load_recipe(written.file)
    assert (recipe.verifier.name, recipe.data.fields.metadata) == ("code", ["program"])
    assert recipe.chat.answer_instruction is None


@pytest.mark.usefixtures("quick")
def test_the_prompts_are_counted_as_a_run_counts_them(tmp_path: Path) -> None:
    model = look_at_model("tiny")
    data = look_at_data(str(write_jsonl(tmp_path / "sums.jsonl", sums())))
    chat = chat_of(model, data)
    roles = Roles(load_tokenizer("tiny"), PhraseSettings(), chat)
    expected = [len(roles.generator_prompt(Question("q", text, ""))) for text in data.questions]
    assert model.prompt_lengths(data.questions, chat) == expected


@pytest.mark.parametrize("name", ["qwen3-4b", "olmo3-7b"])
def test_real_chat_templates_are_rendered_as_transformers_does(tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(ARCHITECTURES / name, tmp_path / name))
    shutil.copy(tiny.model_folder() / "model.safetensors", folder)
    if not (folder / "tokenizer_config.json").is_file():
        pytest.skip("this architecture ships without a tokenizer's configuration")
    model, tokenizer = look_at_model(str(folder)), load_tokenizer(str(folder))
    messages = [{"role": "user", "content": "Hello?"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert model.template.apply_chat_template(messages, add_generation_prompt=True) == expected
    from sdzero.recipe import ChatSettings

    assert model.thinking == thinking_of(tokenizer, ChatSettings())


def test_the_weights_are_counted_from_their_headers() -> None:
    from sdzero.models import read_model

    folder = tiny.model_folder()
    import torch

    model = look_at_model("tiny")
    stored = read_model(str(folder), torch.float32, "sdpa").num_parameters()
    assert model.parameters == stored
    assert (model.dtype, model.context) == ("F32", 512)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no \\*.safetensors"),
        ("chat_template.jinja", "no chat template"),
    ],
)
def test_a_model_folder_that_lacks_something(tmp_path: Path, name: str, told: str) -> None:
    folder = Path(shutil.copytree(tiny.model_folder(), tmp_path / "model"))
    (folder / name).unlink()
    with pytest.raises(UserError, match=told) as error:
        look_at_model(str(folder))
    assert error.value.todo
    with pytest.raises(UserError, match="no model folder"):
        look_at_model(str(tmp_path / "none"))


def test_a_thinking_model_is_turned_off_where_that_is_possible(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.model_folder(), tmp_path / "model"))
    template = (folder / "chat_template.jinja").read_text()
    switch = "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    (folder / "chat_template.jinja").write_text(template + switch)
    model = look_at_model(str(folder))
    assert (model.thinking.kind, model.thinking.switch) == ("switchable", "enable_thinking")
    data = data_look.DataLook("d", "jsonl", "math", "", 1, ("q",))
    assert chat_of(model, data).template_arguments == {"enable_thinking": False}


def test_how_questions_are_shared_out() -> None:
    assert Sizes.of(17_000, "d") == Sizes(n1=6000, n2=9000, tuning=200, test=500)
    small = Sizes.of(10, "d")
    assert small.n1 + small.n2 + small.tuning + small.test == 10
    with pytest.raises(UserError, match="there are 9 distinct questions"):
        Sizes.of(9, "d")


def test_init_needs_no_torch(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "sums.jsonl", sums())
    arguments = ["init", "--model", "tiny", "--data", str(data), "-o", str(tmp_path / "r.yaml"), "--json"]
    code = (
        f"import sys; sys.modules['torch'] = None; sys.argv = ['sdzero', *{arguments!r}]\n"
        "from sdzero.cli import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recipe"] == str(tmp_path / "r.yaml")
    assert load_recipe(tmp_path / "r.yaml").name == "tiny-sums"
