"""Every source of questions, and every fault that its data can have."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdzero.errors import UserError
from sdzero.questions.sources import load_questions
from sdzero.recipe import DataSettings

GOOD = [{"question": "1+1?", "answer": 2}, {"question": "1+2?", "answer": "3"}]


def _settings(**keys: Any) -> DataSettings:
    return DataSettings(**{"n1": 1, "n2": 1, "test": 1, **keys})


def _jsonl(folder: Path, *lines: Any, **fields: Any) -> DataSettings:
    file = folder / "questions.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return _settings(source="jsonl", path=str(file), fields=fields)


def test_importing_the_sources_imports_nothing_heavy() -> None:
    code = (
        "import sys, sdzero.questions.sources, sdzero.questions.splits, sdzero.verify.worker;"
        "heavy = ('torch', 'datasets', 'transformers', 'reasoning_gym', 'sympy');"
        "print([module for module in heavy if module in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_arithmetic_source_has_every_post_training_problem_with_its_kind() -> None:
    questions = load_questions(_settings())
    assert len(questions) > 20_000
    assert len({q.text for q in questions}) == len(questions)
    assert len({q.kind for q in questions}) == 11
    sums = [q for q in questions if q.kind == "a+b+c+d"]
    assert sums
    for question in sums[:50]:
        assert int(question.answer) == sum(int(part) for part in question.text.split("+"))
        assert question.id == question.text


def test_jsonl_maps_columns_and_turns_numbers_into_text(tmp_path: Path) -> None:
    row = {
        "problem": "How far?",
        "solution": 2.5,
        "name": 17,
        "level": "hard",
        "year": [2024],
        "unused": None,
    }
    settings = _jsonl(
        tmp_path, row, question="problem", answer="solution", id="name", kind="level", metadata=["year"]
    )
    (question,) = load_questions(settings)
    assert (question.text, question.answer, question.id, question.kind) == ("How far?", "2.5", "17", "hard")
    assert question.metadata == {"year": [2024]}


def test_jsonl_skips_blank_lines_and_counts_them(tmp_path: Path) -> None:
    questions = load_questions(_jsonl(tmp_path, "\ufeff" + json.dumps(GOOD[0]), "", GOOD[1], ""))
    assert [q.id for q in questions] == ["1", "3"]
    assert [q.answer for q in questions] == ["2", "3"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "1+1?", "answer": 2', "not JSON"),
        ('["1+1?", 2]', "list, not an object"),
        ({"question": "1+1?", "result": 2}, "no column `answer`; the columns are: question, result"),
        ({"question": "1+1?", "answer": ""}, "answer in column `answer` is empty"),
        ({"question": "1+1?", "answer": None}, "answer in column `answer` is empty"),
        ({"question": "1+1?", "answer": [2]}, "type list; it must be text or a number"),
        ({"question": "1+1?", "answer": True}, "True; it must be text or a number"),
        ('{"question": "1+1?", "answer": NaN}', "nan; it must be text or a number"),
        ({"question": "  ", "answer": 2}, "question in column `question` is empty"),
        ({"question": 11, "answer": 2}, "type int, not text"),
        ({"question": None, "answer": 2}, "is empty, not text"),
        ({"question": [{"role": "user", "content": "1+1?"}], "answer": 2}, "list of chat messages"),
        ('{"question": "1+1?", "answer": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_fault_in_a_line_names_the_file_and_the_line(tmp_path: Path, line: Any, message: str) -> None:
    settings = _jsonl(tmp_path, *GOOD, line)
    with pytest.raises(UserError, match=message) as caught:
        load_questions(settings)
    assert caught.value.where == f"{tmp_path / 'questions.jsonl'}:3"
    assert caught.value.todo


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "latin.jsonl"
    file.write_bytes(b'{"question": "caf\xe9?", "answer": 1}\n')
    with pytest.raises(UserError, match="not UTF-8") as caught:
        load_questions(_settings(source="jsonl", path=str(file)))
    assert caught.value.where == f"{file}:1"


def test_a_missing_an_empty_and_a_misplaced_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no question in the data"):
        load_questions(_jsonl(tmp_path, "", ""))
    with pytest.raises(UserError, match="no such file"):
        load_questions(_settings(source="jsonl", path=str(tmp_path / "absent.jsonl")))
    with pytest.raises(UserError, match="not a file"):
        load_questions(_settings(source="jsonl", path=str(tmp_path)))


def test_duplicates_are_merged_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sdzero"):
        questions = load_questions(_jsonl(tmp_path, *GOOD, {"question": "1+1?  ", "answer": "2"}))
    assert [q.text for q in questions] == ["1+1?", "1+2?"]
    assert "1 duplicate" in caplog.text


def test_one_question_with_two_answers_names_both_lines(tmp_path: Path) -> None:
    settings = _jsonl(tmp_path, *GOOD, {"question": " 1+1?", "answer": "11"})
    with pytest.raises(UserError, match="two answers, '2' and '11'") as caught:
        load_questions(settings)
    assert "questions.jsonl:1 and" in str(caught.value.where)
    assert "questions.jsonl:3" in str(caught.value.where)


def test_two_questions_with_one_id_name_both_lines(tmp_path: Path) -> None:
    rows = [{**row, "name": "same"} for row in GOOD]
    with pytest.raises(UserError, match="two questions have the id 'same'") as caught:
        load_questions(_jsonl(tmp_path, *rows, id="name"))
    assert ":1 and " in str(caught.value.where)


def test_faulty_rows_are_left_out_when_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "q.jsonl"
    rows = [
        {"question": "a", "answer": "1"},
        {"question": "b", "answer": ""},
        {"question": "c", "answer": "1"},
        {"question": "c", "answer": "2"},
        {"question": "d", "answer": None},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings(source="jsonl", path=str(file), n1=1, n2=1, test=1, faulty="drop")
    with caplog.at_level("WARNING"):
        assert [question.text for question in load_questions(settings)] == ["a"]
    assert "2 rows without an answer" in caplog.text
    assert "1 questions with two answers" in caplog.text
