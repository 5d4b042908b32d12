"""Grade programs: the last fenced block of a response is run on the question's tests, in a sandbox.

What a program should return or write never enters the sandbox that the program runs in. Programs that read
and write are compared here; functions are called by a judge in a sandbox of its own (`harness/judge.py`),
to which nothing comes from the program but plain values. So the only way to be right is to be right: a
program can neither read the answers, nor touch the tests, nor say that it passed.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdzero.questions.programs import (
    METADATA_KEY,
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
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify.backends import make_sandbox
from sdzero.verify.fenced import last_program
from sdzero.verify.program_runs import ProgramRunner, no_compiler
from sdzero.verify.sandbox import SandboxError
from sdzero.verify.verdict import Outcome, Verdict
from sdzero.verify.verdict_cache import VerdictCache, key_of
from sdzero.verify.verifier import Canary

FORMAT = 1
"""Raised when grading changes, so that no verdict of before is taken for one of now."""


class CodeVerifier:
    """Grades questions with a `ProgramTask`; others raise UserError.

    Verdicts: `no_answer` without a closed block of the right language; `compile_error`, `runtime_error`,
    `timeout`, `memory` and `wrong` for the first test that is not passed. `cache` is a file of verdicts.
    """

    name = "code"

    def __init__(self, settings: SandboxSettings | None = None, cache: Path | None = None) -> None:
        """Raises UserError if programs cannot be run in isolation."""
        self._settings = settings or SandboxSettings()
        self._cache = VerdictCache(cache) if cache is not None and self._settings.cache else None
        self._runner = ProgramRunner(make_sandbox(self._settings), self._settings)

    def grade(self, question: Question, response: str) -> Verdict:
        """Raises UserError if the tests are missing or faulty, SandboxError if the sandbox failed."""
        task = task_of(question.metadata, f"question {question.id}")
        program = last_program(response, task.language)
        if program is None or not program.strip():
            return Verdict(Outcome.NO_ANSWER, f"no closed block of {task.language}")
        if self._cache is None:
            return self._run(task, program)
        key = key_of(
            FORMAT,
            self._runner.versions(task.language),
            self._settings.model_dump(mode="json", exclude={"cache"}),
            question.metadata[METADATA_KEY],
            program,
        )
        verdict = self._cache.get(key)
        if verdict is None:
            verdict = self._run(task, program)
            self._cache.put(key, verdict)
        return verdict

    def _run(self, task: ProgramTask, program: str) -> Verdict:
        try:
            return self._runner.grade(task, program)
        except SandboxError:
            # Its processes are in doubt; the next response gets new ones.
            self._runner.close()
            self._runner = ProgramRunner(make_sandbox(self._settings), self._settings)
            raise

    def close(self) -> None:
        """End the sandbox."""
        self._runner.close()
        if self._cache:
            self._cache.close()

    def canaries(self) -> list[Canary]:
        """Each kind of test, right and wrong; in C++ too, where there is a compiler."""
        echo = StdioTests(cases=[StdioCase(input="2 3\n", output="5\n")])
        double = CallTests(entry="double", cases=[CallCase(arguments=[4], expected=8)])
        check = AssertionTests(names=["double"], code="assert double([1]) == [1, 1]")
        python = [
            (echo, "a, b = map(int, input().split())\nprint(a + b)", Outcome.CORRECT),
            (echo, "print(6)", Outcome.WRONG),
            (echo, "print(5", Outcome.COMPILE_ERROR),
            (echo, "raise SystemExit(3)", Outcome.RUNTIME_ERROR),
            (double, "def double(x):\n    return 2 * x", Outcome.CORRECT),
            (double, "def double(x):\n    return x", Outcome.WRONG),
            (check, "def double(x):\n    return 2 * x", Outcome.CORRECT),
            (check, "import os\nos._exit(0)", Outcome.RUNTIME_ERROR),
        ]
        found = [_canary("python", *one) for one in python]
        found.append(Canary(_question("python", echo), "The sum is 5.", Outcome.NO_ANSWER))
        if self._runner.has_compiler():
            source = "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a %s b; }"
            found += [
                _canary("cpp", echo, source % "+", Outcome.CORRECT),
                _canary("cpp", echo, source % "-", Outcome.WRONG),
            ]
        return found


def _question(language: Any, tests: StdioTests | CallTests | AssertionTests) -> Question:
    task = ProgramTask(language=language, tests=tests)
    return Question("canary", f"A {language} program ({tests.kind}).", "tests", metadata=metadata_of(task))


def _canary(language: str, tests: Any, program: str, outcome: Outcome) -> Canary:
    return Canary(_question(language, tests), f"```{language}\n{program}\n```", outcome)


def check_languages(questions: Iterable[Question], settings: SandboxSettings) -> None:
    """Raise UserError if a question asks for C++ and there is no compiler, before anything is sampled."""
    in_image = settings.backend in ("docker", "podman")
    if in_image or shutil.which(settings.compiler):
        return
    for question in questions:
        if question.metadata.get(METADATA_KEY, {}).get("language") == "cpp":
            raise no_compiler(
                f"question {question.id} asks for C++, and there is no compiler `{settings.compiler}`"
            )
