"""Rows of LiveCodeBench become questions, and hostile private tests are refused without being run."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from questions.code_rows import FUNCTIONAL, STDIN, cases, packed
from sdzero.errors import UserError
from sdzero.questions.livecodebench import PREAMBLE, livecodebench_question, private_tests
from sdzero.questions.program_rows import LeftOutError
from sdzero.questions.programs import CallTests, StdioTests, task_of
from sdzero.questions.question import Question


def _question(row: dict[str, Any], max_tests: int | None = None) -> Question:
    return livecodebench_question(row, "row 7", "7", max_tests)


def test_a_stdin_row_has_public_and_private_tests() -> None:
    question = _question(STDIN)
    task = task_of(question.metadata, "here")
    assert isinstance(task.tests, StdioTests)
    assert [case.input for case in task.tests.cases] == ["1\n", "2\n", "3\n"]
    assert (question.id, question.kind, task.language, task.preamble) == ("abc001_a", "easy", "python", "")
    assert question.text.startswith("Double the number.\n\nSample Input 1\n\n1\n\nWrite a Python 3 program")
    assert question.answer.startswith("sha256:")


def test_a_functional_row_calls_the_method_of_the_starter_code() -> None:
    question = _question(FUNCTIONAL)
    task = task_of(question.metadata, "here")
    assert isinstance(task.tests, CallTests)
    assert task.tests.entry == "Solution.countPairs"
    calls = [(case.arguments, case.expected) for case in task.tests.cases]
    assert calls == [([[1, 2], "a\u2028b"], 3), ([[], ""], None), ([[[1.5]], "x"], [True])]
    assert f"```python\n{FUNCTIONAL['starter_code']}\n```" in question.text
    assert "`countPairs`" in question.text
    assert question.text.endswith("Keep the class `Solution`.")
    assert question.kind == "medium"


def test_starter_code_without_a_class_is_a_plain_function() -> None:
    starter = "# class ListNode: ...\nasync def countPairs(nums):\n    "
    task = task_of(_question({**FUNCTIONAL, "starter_code": starter}).metadata, "here")
    assert isinstance(task.tests, CallTests)
    assert task.tests.entry == "countPairs"


def test_the_preamble_makes_leetcode_programs_run_and_leaves_the_builtins_alone() -> None:
    program = (
        f"{PREAMBLE}\n"
        "class Solution:\n"
        "    def f(self, a: List[int]) -> Optional[int]:\n"
        "        return bisect_left(a, 2) + heapq.nlargest(1, a)[0] + gcd(4, 6) + datetime.MINYEAR\n"
        "assert Solution().f([1, 2, 3]) == 7\n"
        "assert pow(2, 3, 5) == 3 and callable(open) and sys.getrecursionlimit() == 50_000\n"
    )
    subprocess.run([sys.executable, "-I", "-c", program], check=True)


def test_at_most_max_tests_are_kept() -> None:
    task = task_of(_question(STDIN, max_tests=2).metadata, "here")
    assert isinstance(task.tests, StdioTests)
    assert [case.input for case in task.tests.cases] == ["1\n", "3\n"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("size", [1, 5000])
def test_private_tests_are_read_from_a_pickle_of_any_protocol(protocol: int, size: int) -> None:
    text = cases("stdin", *(("é\n", "\U0001f600") for _ in range(size)))
    row = {"private_test_cases": packed(pickle.dumps(text, protocol))}
    assert private_tests(row, "row 7") == json.loads(text)


class _Hostile:
    """Its pickle writes a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.file, "loaded")


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "proof"
    pickled = pickle.dumps(_Hostile(file))
    with pytest.raises(UserError, match="the pickle holds more than text") as caught:
        _question({**STDIN, "private_test_cases": packed(pickled)})
    assert caught.value.where == "row 7"
    assert not file.exists()
    pickle.loads(pickled)
    assert file.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        pickle.dumps(["[]"]),
        pickle.dumps(b"[]"),
        pickle.dumps(3),
        # Loading this one would ask for gigabytes, for a memo with that many places.
        b"\x80\x04\x8c\x02[]r\xff\xff\xff\x3f0\x8c\x02[].",
        b"\x80\x04\x8c\x02[]\x8c\x02[].",
        b"\x80\x04\x8c\x02[]",
        b"",
    ],
)
def test_a_pickle_of_anything_but_one_text_is_refused(pickled: bytes) -> None:
    with pytest.raises(UserError, match="neither JSON text nor base64 of zlib of a pickled text") as caught:
        _question({**STDIN, "private_test_cases": packed(pickled)})
    assert caught.value.where == "row 7"


def test_tests_that_unpack_to_too_much_are_refused() -> None:
    row = {"private_test_cases": packed(pickle.dumps("[" + " " * 10_000_000 + "]"))}
    assert len(row["private_test_cases"]) < 20_000
    with pytest.raises(UserError, match="unpacks to more than 1000000 bytes") as caught:
        private_tests(row, "row 7", limit=1_000_000)
    assert caught.value.where == "row 7"
    assert private_tests(row, "row 7", limit=20_000_000) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"private_test_cases": "not base64!"}, "neither JSON text nor base64"),
        ({"private_test_cases": STDIN["private_test_cases"][:-8]}, "neither JSON text nor base64"),
        ({"private_test_cases": packed(pickle.dumps("[1"))}, "column `private_test_cases` is not JSON"),
        ({"public_test_cases": "[1"}, "column `public_test_cases` is not JSON"),
        ({"public_test_cases": "{}"}, "is of type dict, not a list"),
        ({"public_test_cases": '["1"]'}, "a test in the test cases has no text under `input`"),
        ({"public_test_cases": cases("functional", ("1", "2"))}, "of type functional, stdin"),
        ({"public_test_cases": cases("stdin", ("\ud800", "1"))}, "half of a surrogate pair"),
        ({"question_content": " "}, "column `question_content` is empty"),
    ],
)
def test_a_fault_in_a_stdin_row_names_the_row(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _question({**STDIN, **change})
    assert caught.value.where == "row 7"
    assert caught.value.todo


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": "{}"}, "gives None as `func_name`"),
        ({"metadata": '{"func_name": "a b"}'}, "gives 'a b' as `func_name`"),
        ({"metadata": "{"}, "column `metadata` is not JSON"),
        ({"metadata": '{"func_name": "other"}'}, "starter code does not define `other`"),
        ({"starter_code": ""}, "column `starter_code` is empty"),
        ({"public_test_cases": cases("functional", ("[1", "2"))}, "an argument of a test is not JSON"),
        ({"public_test_cases": cases("functional", ("NaN", "2"))}, "NaN is no JSON number"),
        ({"public_test_cases": cases("functional", ("1", "one"))}, "the output of a test is not JSON"),
        ({"public_test_cases": cases("functional", ("[" * 100_000, "1"))}, "is nested too deeply"),
        ({"public_test_cases": cases("functional", ("[" * 500 + "]" * 500, "1"))}, "tests cannot be kept"),
    ],
)
def test_a_fault_in_a_functional_row_names_the_row(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _question({**FUNCTIONAL, **change})
    assert caught.value.where == "row 7"
    assert caught.value.todo


def test_a_row_without_tests_is_left_out() -> None:
    with pytest.raises(LeftOutError, match="without tests"):
        _question({**STDIN, "public_test_cases": "[]", "private_test_cases": ""})
