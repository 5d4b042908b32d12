"""What a question that asks for a program carries: strict, and the same after JSON."""

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sdzero.errors import UserError
from sdzero.questions.programs import (
    AssertionTests,
    CallCase,
    CallTests,
    ProgramTask,
    StdioCase,
    StdioTests,
    metadata_of,
    task_of,
)
from sdzero.questions.question import Question
from sdzero.questions.splits import question_from_json, question_to_json
from support import environment

STDIO: dict[str, Any] = {"kind": "stdio", "cases": [{"input": "1\n", "output": "2\n"}]}
CALLS: dict[str, Any] = {"kind": "calls", "entry": "f", "cases": [{"arguments": [1], "expected": 2}]}
ASSERTIONS: dict[str, Any] = {"kind": "assertions", "names": ["f"], "code": "assert f(1) == 2"}

_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_text = st.text(max_size=8)
_tolerance = st.none() | st.floats(0, 1)
_tests = st.one_of(
    st.builds(
        StdioTests,
        cases=st.lists(st.builds(StdioCase, input=_text, output=_text), min_size=1, max_size=3),
        tolerance=_tolerance,
        checker=st.none() | _text,
    ),
    st.builds(
        CallTests,
        entry=st.sampled_from(["f", "Solution.f"]),
        cases=st.lists(
            st.builds(CallCase, arguments=st.lists(_json, max_size=3), expected=_json), min_size=1, max_size=3
        ),
        tolerance=_tolerance,
    ),
    st.builds(AssertionTests, names=st.lists(_text, min_size=1, max_size=2), code=_text, preamble=_text),
)
_tasks = st.builds(
    ProgramTask,
    preamble=_text,
    time_seconds=st.none() | st.floats(0.1, 100),
    memory_megabytes=st.none() | st.integers(1, 4096),
    tests=_tests,
)


@given(_tasks)
def test_a_task_survives_a_questions_way_through_json(task: ProgramTask) -> None:
    question = Question("q", "?", "tests", metadata=metadata_of(task))
    again = question_from_json(json.loads(json.dumps(question_to_json(question))))
    # Compared as text: 1, 1.0 and True are equal to Python, and are not the same value to return.
    assert repr(task_of(again.metadata, "q")) == repr(task)


def test_numbers_keep_their_kind_and_size() -> None:
    expected = [True, 1, 1.0, 10**30, -0.0, 1e300, None, "1"]
    task = ProgramTask(tests=CallTests(entry="f", cases=[CallCase(arguments=[expected], expected=expected)]))
    again = task_of(json.loads(json.dumps(metadata_of(task))), "q")
    assert isinstance(again.tests, CallTests)
    assert repr(again.tests.cases[0].expected) == repr(expected)
    assert repr(again.tests.cases[0].arguments) == repr([expected])


def test_the_metadata_hold_all_under_one_name() -> None:
    assert metadata_of(ProgramTask(tests=StdioTests(**STDIO))) == {
        "program": {
            "language": "python",
            "preamble": "",
            "time_seconds": None,
            "memory_megabytes": None,
            "tests": {**STDIO, "tolerance": None, "checker": None},
        }
    }


@pytest.mark.parametrize(
    ("tests", "kind"), [(STDIO, StdioTests), (CALLS, CallTests), (ASSERTIONS, AssertionTests)]
)
def test_what_is_left_out_has_a_default(tests: dict[str, Any], kind: type) -> None:
    task = task_of({"program": {"tests": tests}, "difficulty": 3}, "q")
    assert task.language == "python"
    assert task.preamble == ""
    assert task.time_seconds is None
    assert task.memory_megabytes is None
    assert isinstance(task.tests, kind)


def test_a_question_without_tests_is_told() -> None:
    with pytest.raises(UserError, match="has no tests") as caught:
        task_of({"difficulty": 3}, "question 7")
    assert caught.value.where == "question 7"
    assert "`program`" in str(caught.value.todo)


@pytest.mark.parametrize(
    ("program", "place"),
    [
        ({}, "tests"),
        ({"tests": {**STDIO, "kind": "guess"}}, "tests"),
        ({"tests": {"cases": STDIO["cases"]}}, "tests"),
        ({"tests": STDIO, "language": "rust"}, "language"),
        ({"tests": STDIO, "time_limit": 2}, "time_limit"),
        ({"tests": STDIO, "time_seconds": 0}, "time_seconds"),
        ({"tests": STDIO, "time_seconds": float("inf")}, "time_seconds"),
        ({"tests": STDIO, "time_seconds": float("nan")}, "time_seconds"),
        ({"tests": STDIO, "memory_megabytes": -1}, "memory_megabytes"),
        ({"tests": STDIO, "memory_megabytes": 1.5}, "memory_megabytes"),
        ({"tests": {**STDIO, "cases": []}}, "tests.stdio.cases"),
        ({"tests": {**STDIO, "cases": [{"input": "1"}]}}, "tests.stdio.cases.0.output"),
        (
            {"tests": {**STDIO, "cases": [*STDIO["cases"], {"input": 1, "output": ""}]}},
            "tests.stdio.cases.1.input",
        ),
        ({"tests": {**STDIO, "tolerance": -1e-6}}, "tests.stdio.tolerance"),
        ({"tests": {**STDIO, "tolerance": float("inf")}}, "tests.stdio.tolerance"),
        ({"tests": {**STDIO, "entry": "f"}}, "tests.stdio.entry"),
        ({"tests": {**CALLS, "cases": []}}, "tests.calls.cases"),
        ({"tests": {**CALLS, "cases": [{"arguments": 1, "expected": 2}]}}, "tests.calls.cases.0.arguments"),
        ({"tests": {**CALLS, "cases": [{"arguments": [1]}]}}, "tests.calls.cases.0.expected"),
        ({"tests": {**ASSERTIONS, "names": []}}, "tests.assertions.names"),
        ({"tests": {**ASSERTIONS, "code": None}}, "tests.assertions.code"),
    ],
)
def test_a_faulty_task_is_told_with_its_place(program: dict[str, Any], place: str) -> None:
    with pytest.raises(UserError, match="tests of the question are faulty") as caught:
        task_of({"program": program}, "rows.jsonl:3")
    assert f"{place}: " in caught.value.what
    assert caught.value.where == "rows.jsonl:3"


@pytest.mark.parametrize("program", [None, [], "tests", 5])
def test_what_is_no_object_is_told(program: Any) -> None:
    with pytest.raises(UserError, match="faulty: program: ") as caught:
        task_of({"program": program}, "q")
    assert caught.value.where == "q"


@pytest.mark.parametrize("impossible", [{"tests": CALLS}, {"tests": ASSERTIONS}, {"preamble": "import math"}])
def test_a_program_in_cpp_reads_and_writes(impossible: dict[str, Any]) -> None:
    # Functions and preambles are Python's: a C++ program could never pass.
    with pytest.raises(UserError, match=r"faulty: program: .*cpp"):
        task_of({"program": {"language": "cpp", "tests": STDIO, **impossible}}, "q")
    assert task_of({"program": {"language": "cpp", "tests": STDIO}}, "q").language == "cpp"


def test_a_task_does_not_change() -> None:
    task = ProgramTask(tests=StdioTests(**STDIO))
    with pytest.raises(ValidationError):
        task.language = "cpp"  # type: ignore[misc]


def test_it_imports_no_torch() -> None:
    code = "import sys, sdzero.questions.programs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == 0
