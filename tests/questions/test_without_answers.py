"""Rows without an answer: refused as ever, or, in label-free mode, questions for n1 and n2 only."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from sdzero.errors import UserError
from sdzero.questions.question import Question
from sdzero.questions.sources import load_questions
from sdzero.questions.splits import split_questions
from sdzero.recipe import DataSettings

ROWS: list[dict[str, Any]] = [
    {"question": "1+1?", "answer": 2},
    {"question": "1+2?", "answer": None},
    {"question": "1+3?", "answer": " "},
    {"question": "1+4?"},
]


def jsonl(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> DataSettings:
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSettings(**{"source": "jsonl", "path": str(file), "n1": 1, "n2": 1, "test": 1, **keys})


def test_rows_without_an_answer_are_questions_if_they_are_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="sdzero"):
        questions = load_questions(jsonl(tmp_path, ROWS), empty_answers=True)
    assert [(q.id, q.text, q.answer) for q in questions] == [
        ("1", "1+1?", "2"),
        ("2", "1+2?", ""),
        ("3", "1+3?", ""),
        ("4", "1+4?", ""),
    ]
    assert "3 rows without an answer, for n1 and n2 only" in caplog.text


def test_without_asking_they_are_refused_or_dropped(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the answer in column `answer` is empty"):
        load_questions(jsonl(tmp_path, ROWS[:2]))
    assert len(load_questions(jsonl(tmp_path, ROWS[:3], faulty="drop"))) == 1
    with pytest.raises(UserError, match="there is no column `answer`"):
        load_questions(jsonl(tmp_path, ROWS[3:]))


@pytest.mark.parametrize("answered_first", [True, False])
def test_of_equal_texts_the_one_with_an_answer_is_kept(tmp_path: Path, answered_first: bool) -> None:
    rows = [{"question": "1+1?", "answer": "2"}, {"question": " 1+1?"}, {"question": "1+2?", "answer": "3"}]
    if not answered_first:
        rows[:2] = rows[1::-1]
    questions = load_questions(jsonl(tmp_path, rows), empty_answers=True)
    assert [(q.id, q.answer) for q in questions] == [("1", "2"), ("3", "3")]


def test_two_answers_to_one_text_stay_a_fault(tmp_path: Path) -> None:
    rows = [{"question": "1+1?"}, {"question": "1+1?", "answer": "2"}, {"question": "1+1?", "answer": "3"}]
    with pytest.raises(UserError, match="two answers, '2' and '3'"):
        load_questions(jsonl(tmp_path, rows), empty_answers=True)


def test_a_column_of_a_data_set_may_have_gaps(tmp_path: Path) -> None:
    import datasets

    rows = [
        {"question": row["question"], "answer": answer}
        for row, answer in zip(ROWS, ("2", None, " "), strict=False)
    ]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "rows"))
    settings = DataSettings(source="huggingface", path=str(tmp_path / "rows"), n1=1, n2=1, test=1)
    assert [q.answer for q in load_questions(settings, empty_answers=True)] == ["2", "", ""]


def questions(answered: int, unanswered: int) -> list[Question]:
    return [
        Question(f"q{i}", f"What is {i}?", str(i) if i < answered else "")
        for i in range(answered + unanswered)
    ]


def test_test_and_tuning_questions_have_answers() -> None:
    settings = DataSettings(source="jsonl", path="unused", n1=10, n2=10, tuning=3, test=4)
    sets = split_questions(questions(8, 20), settings)
    assert all(question.answer for question in (*sets.test, *sets.tuning))
    assert [len(own) for own in (sets.n1, sets.n2, sets.tuning, sets.test)] == [10, 10, 3, 4]
    assert sum(not question.answer for question in (*sets.n1, *sets.n2)) >= 19
    assert len({q.id for own in vars(sets).values() for q in own}) == 27


def test_the_test_set_does_not_change_with_questions_without_an_answer() -> None:
    settings = DataSettings(source="jsonl", path="unused", n1=2, n2=2, tuning=3, test=4)
    before, after = (split_questions(questions(12, more), settings) for more in (0, 30))
    assert (before.test, before.tuning) == (after.test, after.tuning)


def test_too_few_answers_for_test_and_tuning() -> None:
    settings = DataSettings(source="jsonl", path="unused", n1=2, n2=2, tuning=3, test=4)
    with pytest.raises(UserError, match="only 6 questions have one") as raised:
        split_questions(questions(6, 20), settings)
    assert raised.value.where == "data: test 4, tuning 3"
