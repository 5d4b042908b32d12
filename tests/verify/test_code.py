"""The verifier of programs: verdicts, extraction, limits, the cache; all of it in the sandbox."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxed import block, needs_sandbox
from sdzero.errors import UserError
from sdzero.questions.programs import (
    AssertionTests,
    CallCase,
    CallTests,
    ProgramTask,
    StdioCase,
    StdioTests,
    metadata_of,
)
from sdzero.questions.question import Question
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify import program_runs
from sdzero.verify.code import CodeVerifier, check_languages
from sdzero.verify.sandbox import SandboxError
from sdzero.verify.verdict import Outcome, Verdict

pytestmark = needs_sandbox

SETTINGS = SandboxSettings(wall_seconds=1.0, cpu_seconds=1.0, memory_megabytes=256, output_megabytes=1)


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    """One verifier with small limits."""
    opened = CodeVerifier(SETTINGS)
    yield opened
    opened.close()


def question_of(tests: Any, **task: Any) -> Question:
    return Question("q", "Write it.", "tests", metadata=metadata_of(ProgramTask(tests=tests, **task)))


ECHO = question_of(
    StdioTests(cases=[StdioCase(input="1\n", output="1\n"), StdioCase(input="2\n", output="2")])
)
ADD = question_of(CallTests(entry="add", cases=[CallCase(arguments=[1, 2], expected=3)]))
CHECK = question_of(
    AssertionTests(names=["pair"], code="assert pair(1) == (1, [1])\nassert pair(2) == (2, [2])")
)


def outcome(verifier: CodeVerifier, question: Question, program: str, language: str = "python") -> Outcome:
    return verifier.grade(question, block(program, language)).outcome


def test_the_canaries_are_graded_as_they_say(verifier: CodeVerifier) -> None:
    for canary in verifier.canaries():
        assert verifier.grade(canary.question, canary.response).outcome is canary.outcome, canary.response


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("print(input())", Outcome.CORRECT),
        ("print(input(), end='   \\n\\n')", Outcome.CORRECT),
        ("print(1)", Outcome.WRONG),
        ("input()", Outcome.WRONG),
        ("print(input(), 'and more')", Outcome.WRONG),
        ("print(input(", Outcome.COMPILE_ERROR),
        ("  print(input())", Outcome.COMPILE_ERROR),
        ("eval('1 +')", Outcome.RUNTIME_ERROR),
        ("print(input()); raise ValueError", Outcome.RUNTIME_ERROR),
        ("print(input()); exit(3)", Outcome.RUNTIME_ERROR),
        ("print(input()); exit()", Outcome.CORRECT),
        ("import os; os.abort()", Outcome.RUNTIME_ERROR),
        ("while True: pass", Outcome.TIMEOUT),
        ("import time; time.sleep(60)", Outcome.TIMEOUT),
        ("x = [0] * 10**9", Outcome.MEMORY),
        ("while True: print('x' * 1000)", Outcome.RUNTIME_ERROR),
        ("import numpy", Outcome.RUNTIME_ERROR),
        (
            "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return n and f(n - 1)\nf(10**5)",
            Outcome.WRONG,
        ),
    ],
)
def test_programs_that_read_and_write(verifier: CodeVerifier, program: str, expected: Outcome) -> None:
    assert outcome(verifier, ECHO, program) is expected


def test_the_first_test_that_fails_is_named(verifier: CodeVerifier) -> None:
    assert verifier.grade(ECHO, block("print(1)")) == Verdict(
        Outcome.WRONG, "test 2: token 1 is '1', not '2'"
    )


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("def add(a, b): return a + b", Outcome.CORRECT),
        ("print('3')\ndef add(a, b):\n    print(3)\n    return a + b", Outcome.CORRECT),
        ("def add(a, b): return str(a + b)", Outcome.WRONG),
        ("def add(a, b): return None", Outcome.WRONG),
        ("def add(a, b): return a / 0", Outcome.RUNTIME_ERROR),
        ("def add(a): return 3", Outcome.RUNTIME_ERROR),
        ("def plus(a, b): return a + b", Outcome.RUNTIME_ERROR),
        ("def add(a, b) return a + b", Outcome.COMPILE_ERROR),
        ("1 / 0", Outcome.RUNTIME_ERROR),
        ("def add(a, b):\n    while True: pass", Outcome.TIMEOUT),
        ("def add(a, b): return [0] * 10**9", Outcome.MEMORY),
    ],
)
def test_functions_that_are_called(verifier: CodeVerifier, program: str, expected: Outcome) -> None:
    assert outcome(verifier, ADD, program) is expected


def test_a_method_is_called_on_a_new_object_each_time(verifier: CodeVerifier) -> None:
    cases = [CallCase(arguments=[5], expected=[5]), CallCase(arguments=[6], expected=[6])]
    question = question_of(CallTests(entry="Solution.keep", cases=cases))
    program = "class Solution:\n    def __init__(self): self.kept = []\n    def keep(self, x):\n"
    program += "        self.kept.append(x)\n        return self.kept"
    assert outcome(verifier, question, program) is Outcome.CORRECT


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("def pair(x): return x, [x]", Outcome.CORRECT),
        ("def pair(x): return [x, [x]]", Outcome.WRONG),
        ("def pair(x): return 1, [1]", Outcome.WRONG),
        ("def pair(x): raise AssertionError", Outcome.RUNTIME_ERROR),
    ],
)
def test_assertions_see_the_kinds_of_values(verifier: CodeVerifier, program: str, expected: Outcome) -> None:
    assert outcome(verifier, CHECK, program) is expected


def test_a_test_may_expect_an_exception(verifier: CodeVerifier) -> None:
    code = "try:\n    root(-1)\nexcept ValueError as e:\n    assert 'negative' in str(e)\n"
    code += "else:\n    assert False"
    question = question_of(AssertionTests(names=["root"], code=code))
    assert outcome(verifier, question, "def root(x): raise ValueError('negative')") is Outcome.CORRECT
    assert outcome(verifier, question, "def root(x): raise KeyError('negative')") is Outcome.RUNTIME_ERROR
    assert outcome(verifier, question, "def root(x): return 1") is Outcome.WRONG


def test_what_stands_before_the_program_is_run_with_it(verifier: CodeVerifier) -> None:
    tests = CallTests(entry="half", cases=[CallCase(arguments=[3], expected=1)])
    question = question_of(tests, preamble="from math import floor")
    assert outcome(verifier, question, "def half(x): return floor(x / 2)") is Outcome.CORRECT


def test_tests_that_cannot_be_used_are_our_fault(verifier: CodeVerifier) -> None:
    broken = question_of(AssertionTests(names=["f"], code="assert f(1) =="))
    with pytest.raises(ValueError, match="tests cannot be used: SyntaxError"):
        verifier.grade(broken, block("def f(x): return 1"))
    strange = question_of(AssertionTests(names=["f"], code="assert f(object())"))
    with pytest.raises(ValueError, match="type object cannot be sent"):
        verifier.grade(strange, block("def f(x): return 1"))
    with pytest.raises(UserError, match="no tests"):
        verifier.grade(Question("q7", "?", "1"), block("pass"))


def test_numbers_within_the_tolerance_are_right(verifier: CodeVerifier) -> None:
    case = StdioCase(input="", output="0.3333333 yes")
    near, exact = StdioTests(cases=[case], tolerance=1e-6), StdioTests(cases=[case])
    assert outcome(verifier, question_of(near), "print(1 / 3, 'yes')") is Outcome.CORRECT
    assert outcome(verifier, question_of(near), "print(0.3334, 'yes')") is Outcome.WRONG
    assert outcome(verifier, question_of(exact), "print(1 / 3, 'yes')") is Outcome.WRONG


CHECKER = """
import sys
given, expected, output = (open(path).read().split() for path in sys.argv[1:])
print(1 if len(output) == 2 and sum(map(int, output)) == int(given[0]) else 0)
"""


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("n = int(input()); print(1, n - 1)", Outcome.CORRECT),
        ("n = int(input()); print(n, 0)", Outcome.CORRECT),
        ("print(1, 1)", Outcome.WRONG),
        ("print('no', 'numbers')", Outcome.WRONG),
    ],
)
def test_a_checker_decides_where_there_are_several_right_outputs(
    verifier: CodeVerifier, program: str, expected: Outcome
) -> None:
    question = question_of(StdioTests(cases=[StdioCase(input="7", output="3 4")], checker=CHECKER))
    assert outcome(verifier, question, program) is expected


def test_a_checker_whose_number_is_zero_refuses_even_the_expected_output(verifier: CodeVerifier) -> None:
    question = question_of(StdioTests(cases=[StdioCase(input="", output="1")], checker="print(0)"))
    assert outcome(verifier, question, "print(1)") is Outcome.WRONG


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("int main() { int x; std::cin >> x; std::cout << x; }", Outcome.CORRECT),
        ("int main() { std::cout << 1; }", Outcome.WRONG),
        ("int main() { return 3; }", Outcome.RUNTIME_ERROR),
        ("int main() { int *p = 0; *p = 1; }", Outcome.RUNTIME_ERROR),
        ("int main() { for (volatile int i = 0;; i++); }", Outcome.TIMEOUT),
        ("int main() { return *new char[1ll << 40]; }", Outcome.MEMORY),
        ("int main() { this does not compile }", Outcome.COMPILE_ERROR),
        ('#include "/etc/passwd"\nint main() {}', Outcome.COMPILE_ERROR),
    ],
)
def test_programs_in_cpp(verifier: CodeVerifier, program: str, expected: Outcome) -> None:
    question = question_of(ECHO_TESTS, language="cpp")
    source = f"#include <iostream>\n{program}"
    assert outcome(verifier, question, source, "cpp") is expected


ECHO_TESTS = StdioTests(cases=[StdioCase(input="1\n", output="1\n"), StdioCase(input="2\n", output="2")])


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")
def test_a_program_is_compiled_once_for_all_its_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    compile_ = program_runs.ProgramRunner._compile
    monkeypatch.setattr(
        program_runs.ProgramRunner,
        "_compile",
        lambda self, source: compiled.append(source) or compile_(self, source),
    )
    verifier = CodeVerifier(SETTINGS)
    program = '#include <cstdio>\nint main() { int x; scanf("%d", &x); printf("%d", x); }'
    assert outcome(verifier, question_of(ECHO_TESTS, language="cpp"), program, "cpp") is Outcome.CORRECT
    assert len(compiled) == 1
    verifier.close()


def test_the_questions_own_limits_hold(verifier: CodeVerifier) -> None:
    slow = "import time; time.sleep(1.8); print(input())"
    assert outcome(verifier, ECHO, slow) is Outcome.TIMEOUT
    patient = CodeVerifier(SandboxSettings(wall_seconds=5.0))
    assert outcome(patient, question_of(ECHO_TESTS, time_seconds=0.1), slow) is Outcome.TIMEOUT
    assert outcome(patient, question_of(ECHO_TESTS, time_seconds=1.0), slow) is Outcome.CORRECT
    large = "x = bytearray(200 * 2**20); print(input())"
    assert outcome(patient, question_of(ECHO_TESTS, memory_megabytes=64), large) is Outcome.MEMORY
    assert outcome(patient, question_of(ECHO_TESTS, memory_megabytes=512), large) is Outcome.CORRECT
    patient.close()


@pytest.mark.parametrize(
    "response",
    [
        "The answer is 1.",
        "```cpp\nint main() {}\n```",
        "```python\nprint(input())\n```\nNo, rather:\n```python\nprint(",
        "```python\n\n```",
    ],
)
def test_without_a_closed_block_there_is_no_answer(verifier: CodeVerifier, response: str) -> None:
    assert verifier.grade(ECHO, response).outcome is Outcome.NO_ANSWER


def test_verdicts_are_kept_by_program_tests_and_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    grade = program_runs.ProgramRunner.grade
    monkeypatch.setattr(
        program_runs.ProgramRunner,
        "grade",
        lambda self, task, program: runs.append(program) or grade(self, task, program),
    )
    first = CodeVerifier(SETTINGS, tmp_path / "cache" / "verdicts.sqlite")
    program, sleeper = block("print(input())"), block("import time; time.sleep(9)")
    assert first.grade(ECHO, program) == first.grade(ECHO, "Once more: " + program)
    assert len(runs) == 1
    assert first.grade(question_of(StdioTests(cases=[StdioCase(input="1", output="2")])), program).reward == 0
    assert len(runs) == 2
    assert first.grade(ECHO, sleeper).outcome is first.grade(ECHO, sleeper).outcome is Outcome.TIMEOUT
    assert len(runs) == 4
    first.close()
    second = CodeVerifier(SETTINGS, tmp_path / "cache" / "verdicts.sqlite")
    assert second.grade(ECHO, program).outcome is Outcome.CORRECT
    assert len(runs) == 4
    second.close()
    other = SETTINGS.model_copy(update={"memory_megabytes": 300})
    third = CodeVerifier(other, tmp_path / "cache" / "verdicts.sqlite")
    assert third.grade(ECHO, program).outcome is Outcome.CORRECT
    assert len(runs) == 5
    third.close()
    without = CodeVerifier(
        SETTINGS.model_copy(update={"cache": False}), tmp_path / "cache" / "verdicts.sqlite"
    )
    assert without.grade(ECHO, program).outcome is Outcome.CORRECT
    assert len(runs) == 6
    without.close()


def test_after_a_fault_of_the_sandbox_the_next_response_gets_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verifier = CodeVerifier(SETTINGS)
    broken = verifier._runner._sandbox
    monkeypatch.setattr(broken, "run", lambda job: (_ for _ in ()).throw(SandboxError("on purpose")))
    with pytest.raises(SandboxError, match="on purpose"):
        verifier.grade(ECHO, block("print(input())"))
    assert outcome(verifier, ECHO, "print(input())") is Outcome.CORRECT
    assert verifier._runner._sandbox is not broken
    verifier.close()


def test_without_bubblewrap_it_refuses_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="bubblewrap is not installed") as refused:
        CodeVerifier(SETTINGS)
    assert "apt-get install bubblewrap" in str(refused.value)


def test_a_sandbox_that_runs_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forbidden = tmp_path / "bwrap"
    forbidden.write_text(
        '#!/bin/sh\ncase "$1" in --help) exec /usr/bin/bwrap --help;; --version) echo bubblewrap 0.8.0;;'
        " *) echo 'bwrap: No permissions to create new namespace' >&2; exit 1;; esac\n"
    )
    forbidden.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UserError, match="No permissions to create new namespace") as refused:
        CodeVerifier(SETTINGS)
    assert "SYS_ADMIN" in str(refused.value)


def test_cpp_without_a_compiler_is_refused_before_anything_is_sampled() -> None:
    settings = SandboxSettings(compiler="no-such-compiler")
    check_languages([ECHO], settings)
    with pytest.raises(UserError, match="asks for C\\+\\+"):
        check_languages([ECHO, question_of(ECHO_TESTS, language="cpp")], settings)


def test_packages_of_a_folder_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "handy.py").write_text("def twice(x): return x + x\n")
    tmp_path.chmod(0o755)
    verifier = CodeVerifier(SandboxSettings(packages=str(tmp_path)))
    question = question_of(StdioTests(cases=[StdioCase(input="a", output="aa")]))
    assert outcome(verifier, question, "import handy; print(handy.twice(input()))") is Outcome.CORRECT
    verifier.close()
    with pytest.raises(UserError, match="no such folder"):
        CodeVerifier(SandboxSettings(packages=str(tmp_path / "none")))
