"""Rows of open-r1/codeforces and open-r1/codeforces-cots become questions, or are left out with a reason."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from questions.code_rows import COTS, OFFICIAL
from sdzero.errors import UserError
from sdzero.questions.codeforces import TESTS_FROM, codeforces_question
from sdzero.questions.program_rows import LeftOutError, language_of, spread
from sdzero.questions.programs import ProgramTask, StdioTests, task_of
from sdzero.questions.question import Question

TEXT = """\
Doubling

Time limit: 1.5 seconds
Memory limit: 256 megabytes

Double the number $n$.

Input

One integer $n$.
Nothing else.

Output

Print $2n$.

Examples

Input:
```
1
```
Output:
```
2
```

Input:
```
5
```
Output:
```
10
```

Note

The first example is easy.

Write a Python 3 program that solves this problem. It reads standard input and writes standard output. End \
your response with the whole program in one fenced code block that begins with ```python."""


def _question(row: dict[str, Any], **arguments: Any) -> Question:
    return codeforces_question(row, "row 0", "0", **{"languages": ["python"], **arguments})


def _task(question: Question) -> tuple[ProgramTask, StdioTests]:
    task = task_of(question.metadata, "here")
    assert isinstance(task.tests, StdioTests)
    return task, task.tests


def test_an_official_row_is_a_contest_statement_with_its_tests() -> None:
    question = _question(OFFICIAL)
    task, tests = _task(question)
    assert question.text == TEXT
    assert (question.id, question.kind, question.solution) == ("1/A", "python", "")
    assert (task.language, task.time_seconds, task.memory_megabytes) == ("python", 1.5, 256)
    assert [(case.input, case.output) for case in tests.cases][:2] == [("0\n", "0\n"), ("1\n", "2\n")]
    assert len(tests.cases) == 20
    assert (tests.checker, tests.tolerance) == (None, None)
    assert question.metadata[TESTS_FROM] == "official tests"


def test_the_answer_is_a_hash_of_the_tests_alone() -> None:
    question = _question(OFFICIAL)
    assert question.answer.startswith("sha256:")
    assert len(question.answer) == len("sha256:") + 64
    assert _question({**OFFICIAL, "title": "Twice"}).answer == question.answer
    assert (
        _question({**OFFICIAL, "official_tests": OFFICIAL["official_tests"][:-1]}).answer != question.answer
    )
    assert _question({**OFFICIAL, "generated_checker": "print(1)"}).answer != question.answer


def test_a_checker_goes_with_the_tests() -> None:
    _, tests = _task(_question({**OFFICIAL, "generated_checker": "import sys\nprint(1)"}))
    assert tests.checker == "import sys\nprint(1)"


@pytest.mark.parametrize(
    ("change", "inputs", "origin"),
    [
        ({"official_tests_complete": False}, 20, "incomplete official tests"),
        ({"official_tests": []}, 2, "the statement's examples only"),
        ({"official_tests": None, "official_tests_complete": False}, 2, "the statement's examples only"),
    ],
)
def test_weaker_tests_are_taken_when_the_official_ones_are_not_complete(
    change: dict[str, Any], inputs: int, origin: str
) -> None:
    question = _question({**OFFICIAL, **change})
    assert len(_task(question)[1].cases) == inputs
    assert question.metadata[TESTS_FROM] == origin


def test_a_cots_row_has_the_tests_of_codecontests_and_no_solution_unless_one_is_named() -> None:
    question = _question(COTS)
    assert [case.input for case in _task(question)[1].cases] == ["1", "2", "3", "4"]
    assert question.metadata[TESTS_FROM] == "tests of CodeContests"
    assert question.solution == ""
    assert "think" not in question.text
    assert _question(COTS, solution="generation").solution == COTS["generation"]


def test_a_cots_row_of_the_subset_solutions_has_examples_only() -> None:
    row = {name: value for name, value in COTS.items() if not name.endswith("_tests")}
    question = _question(row)
    assert question.metadata[TESTS_FROM] == "the statement's examples only"
    assert "\n\nExample\n\nInput:" in question.text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"interaction_format": "Print ? i, then read."}, "interactive"),
        ({"input_mode": "file"}, "not read from standard input"),
        ({"executable": False}, "not executable"),
        ({"description": None}, "without a statement"),
        ({"official_tests": [], "examples": None}, "without tests"),
    ],
)
def test_problems_that_cannot_be_graded_are_left_out(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(LeftOutError, match=f"^{reason}$"):
        _question({**OFFICIAL, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"official_tests": [{"input": "1"}]}, "column `official_tests` has no text under `output`"),
        ({"official_tests": [["1", "2"]]}, "column `official_tests` has no text under `input`"),
        ({"official_tests": "[1"}, "column `official_tests` is not JSON"),
        ({"official_tests": {"input": ["1"], "output": []}}, "not as many inputs as outputs"),
        ({"examples": [{"input": 1, "output": "2"}]}, "column `examples` has no text under `input`"),
        ({"time_limit": 0}, "column `time_limit` is 0, not a number above 0"),
        ({"memory_limit": "256 MB"}, "column `memory_limit` is '256 MB', not a number above 0"),
        ({"description": 7}, "column `description` is of type int, not text"),
    ],
)
def test_a_fault_names_the_row(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _question({**OFFICIAL, **change})
    assert caught.value.where == "row 0"
    assert caught.value.todo


def test_each_problem_is_asked_in_one_language_and_each_language_gets_about_half() -> None:
    rows = [{**OFFICIAL, "description": f"Double {number}."} for number in range(400)]
    questions = [_question(row, languages=["python", "cpp"]) for row in rows]
    kinds = [question.kind for question in questions]
    # 400 fair draws are outside of 160..240 less than once in ten thousand times.
    assert 160 < kinds.count("cpp") < 240
    assert kinds == [_question(row, languages=["cpp", "python"]).kind for row in rows]
    for question in questions:
        task, _ = _task(question)
        assert task.language == question.kind
        assert question.text.endswith(f"begins with ```{question.kind}.")
        assert ("C++ program" in question.text) == (question.kind == "cpp")


def test_one_language_takes_every_problem() -> None:
    assert {language_of(f"statement {number}", ["cpp"]) for number in range(20)} == {"cpp"}


def test_the_tests_kept_are_spread_from_the_first_to_the_last() -> None:
    _, tests = _task(_question(OFFICIAL, max_tests=4))
    assert [case.input for case in tests.cases] == ["0\n", "6\n", "12\n", "19\n"]
    assert spread(list(range(10)), 1) == [9]
    assert spread(list(range(3)), None) == [0, 1, 2]


@given(st.integers(1, 200), st.integers(2, 200))
def test_spread_keeps_as_many_as_it_may_with_both_ends(count: int, most: int) -> None:
    kept = spread(list(range(count)), most)
    assert len(kept) == min(count, most)
    assert (kept[0], kept[-1]) == (0, count - 1)
    steps = {after - before for before, after in itertools.pairwise(kept)}
    assert all(step > 0 for step in steps)
    assert not steps or max(steps) - min(steps) <= 1
