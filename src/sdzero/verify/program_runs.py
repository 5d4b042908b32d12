"""Run one program on its tests, in a sandbox, and say what came of it."""

import json
import re
from dataclasses import replace
from functools import cached_property, lru_cache
from importlib.resources import files

from sdzero.errors import UserError
from sdzero.questions.programs import AssertionTests, CallTests, ProgramTask, StdioTests
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify.backends import limits_of
from sdzero.verify.outputs import difference
from sdzero.verify.sandbox import Ending, Finished, Job, Limits, Sandbox
from sdzero.verify.verdict import Outcome, Verdict

WALL_PER_CPU = 2.0
START_SECONDS = 1.0
"""A question's own limit is of CPU time; by the clock a program has twice that and one second more."""

LEAST_MEMORY_MEGABYTES = 64
BINARY_MEGABYTES = 64

_CPU_SIGNAL = 128 + 24
_SYNTAX = re.compile(rb"^(?:SyntaxError|IndentationError|TabError)\b", re.MULTILINE)
_NO_MEMORY = re.compile(rb"^MemoryError|std::bad_alloc|Cannot allocate memory", re.MULTILINE)


class CompileError(Exception):
    """The program does not compile; the message is the compiler's."""


def no_compiler(what: str) -> UserError:
    """The error of a machine that cannot compile C++, with what to do."""
    return UserError(
        what,
        "verifier.sandbox.compiler",
        "install g++ (Debian, Ubuntu: apt-get install g++), or set data.languages=[python]",
    )


class ProgramRunner:
    """Grades programs, one at a time. It owns the sandbox that it is given."""

    def __init__(self, sandbox: Sandbox, settings: SandboxSettings) -> None:
        self._sandbox = sandbox
        self._settings = settings

    def close(self) -> None:
        """Close the sandbox."""
        self._sandbox.close()

    def has_compiler(self) -> bool:
        """Whether C++ can be compiled in the sandbox."""
        return bool(self._compiler_version)

    def versions(self, language: str) -> str:
        """What runs programs of a language, with its version."""
        own = self._sandbox.versions()
        return f"{own}, {self._compiler_version}" if language == "cpp" else own

    @cached_property
    def _compiler_version(self) -> str:
        """What the compiler says of itself in the sandbox; empty if there is none."""
        limits = limits_of(self._settings)
        done = self._sandbox.run(Job(("/usr/bin/env", self._settings.compiler, "--version"), limits))
        return done.stdout.decode().partition("\n")[0] if done.exit_code == 0 else ""

    def grade(self, task: ProgramTask, program: str) -> Verdict:
        """The verdict on a program's text. Raises SandboxError if the sandbox failed."""
        source, limits = f"{task.preamble}\n{program}" if task.preamble else program, self._limits(task)
        if isinstance(task.tests, StdioTests):
            try:
                job = self._job(task, source, limits)
            except CompileError as fault:
                return Verdict(Outcome.COMPILE_ERROR, str(fault))
            return self._stdio(task.tests, job)
        return self._functions(task.tests, source, limits)

    def _limits(self, task: ProgramTask) -> Limits:
        limits, factor = limits_of(self._settings), self._settings.time_factor
        if task.time_seconds is not None:
            cpu = task.time_seconds * factor
            wall = cpu * WALL_PER_CPU + START_SECONDS
            limits = replace(
                limits,
                cpu_seconds=min(cpu, limits.cpu_seconds),
                wall_seconds=min(wall, limits.wall_seconds),
            )
        if task.memory_megabytes is not None:
            own = max(LEAST_MEMORY_MEGABYTES, task.memory_megabytes)
            limits = replace(limits, memory_megabytes=min(own, limits.memory_megabytes))
        return limits

    # ---- programs that read and write ----

    def _job(self, task: ProgramTask, source: str, limits: Limits) -> Job:
        if task.language == "cpp":
            if not self.has_compiler():
                raise no_compiler(f"there is no compiler `{self._settings.compiler}` in the sandbox")
            return Job((self._sandbox.place("a.out"),), limits, {"a.out": self._compile(source)})
        command = (*self._sandbox.python(), self._sandbox.place("run.py"), self._sandbox.place("main.py"))
        return Job(command, limits, {"run.py": _harness("run.py"), "main.py": _encoded(source)})

    def _stdio(self, tests: StdioTests, job: Job) -> Verdict:
        for number, case in enumerate(tests.cases, start=1):
            done = self._sandbox.run(replace(job, stdin=_encoded(case.input)))
            trouble = _trouble(done, job.limits)
            if trouble is not None:
                return Verdict(trouble.outcome, f"test {number}: {trouble.detail}")
            output = done.stdout.decode(errors="replace")
            if tests.checker is None:
                differs = difference(case.output, output, tests.tolerance)
            else:
                differs = self._checked(tests.checker, case.input, case.output, done.stdout)
            if differs is not None:
                return Verdict(Outcome.WRONG, f"test {number}: {differs}")
        return Verdict(Outcome.CORRECT)

    def _checked(self, checker: str, given: str, expected: str, output: bytes) -> str | None:
        """None if the checker program accepts the output; it runs in a sandbox of its own."""
        names = ("input.txt", "expected.txt", "output.txt")
        contents = dict(zip(names, (_encoded(given), _encoded(expected), output), strict=True))
        command = (*self._sandbox.python(), *(self._sandbox.place(name) for name in ("checker.py", *names)))
        limits = limits_of(self._settings)
        done = self._sandbox.run(Job(command, limits, {"checker.py": _encoded(checker), **contents}))
        words = done.stdout.split()
        try:
            accepted = done.exit_code == 0 and float(words[0]) > 0
        except (IndexError, ValueError):
            accepted = False
        # What the checker cannot read is not right, whoever is to blame: the output is the program's.
        return None if accepted else f"the checker refuses it ({done.ending}, {done.exit_code})"

    def _compile(self, source: str) -> bytes:
        """The program's binary, made in the sandbox. Raises CompileError."""
        settings = self._settings
        limits = replace(
            limits_of(settings),
            wall_seconds=settings.compile_seconds,
            cpu_seconds=settings.compile_seconds,
            memory_megabytes=settings.compile_memory_megabytes,
            file_megabytes=BINARY_MEGABYTES,
            disk_megabytes=4 * BINARY_MEGABYTES,
            output_megabytes=BINARY_MEGABYTES,
        )
        # The binary comes out on standard output, so that no file of the program's is ever on the machine.
        compiler, options = settings.compiler, settings.compiler_options
        line = '"$@" -o a.out >&2 && exec cat a.out'
        command = ("/bin/sh", "-c", line, "sh", compiler, *options, self._sandbox.place("main.cpp"))
        done = self._sandbox.run(Job(command, limits, {"main.cpp": _encoded(source)}))
        if done.ending is not Ending.EXITED:
            raise CompileError(f"compiling was stopped: {done.ending}")
        if done.exit_code != 0:
            raise CompileError(done.stderr.decode(errors="replace").strip()[:500])
        return done.stdout

    # ---- functions ----

    def _functions(self, tests: CallTests | AssertionTests, source: str, limits: Limits) -> Verdict:
        place = self._sandbox.place
        calls = len(tests.cases) if isinstance(tests, CallTests) else 1
        data = tests.model_dump(mode="json") | {"call_seconds": limits.wall_seconds}
        shared = {"values.py": _harness("values.py")}
        whole = replace(
            limits, wall_seconds=limits.wall_seconds * calls, cpu_seconds=limits.cpu_seconds * calls
        )
        program = Job(
            (*self._sandbox.python(), place("host.py"), place("main.py")),
            whole,
            {**shared, "host.py": _harness("host.py"), "main.py": _encoded(source)},
        )
        judge = Job(
            (*self._sandbox.python(), place("judge.py"), place("tests.json")),
            replace(whole, wall_seconds=whole.wall_seconds + START_SECONDS),
            {**shared, "judge.py": _harness("judge.py"), "tests.json": json.dumps(data).encode()},
        )
        return _finding(*self._sandbox.run_pair(judge, program), limits)


def _finding(judge: Finished, program: Finished, limits: Limits) -> Verdict:
    """The verdict by what the judge found, and by how the program ended if it ended first."""
    if program.ending is Ending.MEMORY:
        return Verdict(Outcome.MEMORY, f"over {limits.memory_megabytes} MB")
    if judge.ending is Ending.TIMEOUT or program.ending is Ending.TIMEOUT:
        return Verdict(Outcome.TIMEOUT, "the tests took too long")
    try:
        found = json.loads(judge.stderr.splitlines()[-1])
        outcome, detail = found["outcome"], found["detail"].encode("utf-8", "replace").decode()
    except (IndexError, ValueError, TypeError, KeyError):
        # The tests of a right program are known to end well, so what broke the judge is a reply.
        return Verdict(Outcome.RUNTIME_ERROR, f"the judge ended with {judge.ending}, {judge.exit_code}")
    if outcome == "passed":
        return Verdict(Outcome.CORRECT)
    if outcome == "failed":
        return Verdict(Outcome.WRONG, detail)
    if outcome == "late":
        return Verdict(Outcome.TIMEOUT, f"a call took over {limits.wall_seconds:g} seconds")
    if outcome == "gone":
        trouble = _trouble(program, limits)
        return trouble or Verdict(Outcome.RUNTIME_ERROR, "the program ended before it was asked")
    if outcome == "missing":
        return Verdict(Outcome.RUNTIME_ERROR, f"the program has no {detail}")
    if outcome in ("loading", "raised"):
        if detail.startswith("MemoryError"):
            return Verdict(Outcome.MEMORY, detail)
        syntax = outcome == "loading" and detail.startswith(("SyntaxError", "IndentationError", "TabError"))
        return Verdict(Outcome.COMPILE_ERROR if syntax else Outcome.RUNTIME_ERROR, detail)
    raise ValueError(f"the question's tests cannot be used: {detail}")


def _trouble(done: Finished, limits: Limits) -> Verdict | None:
    """The verdict on a program that did not come to a good end; None if it did."""
    if done.ending is Ending.TIMEOUT or done.exit_code == _CPU_SIGNAL:
        return Verdict(
            Outcome.TIMEOUT, f"over {limits.wall_seconds:g} seconds, or {limits.cpu_seconds:g} of CPU"
        )
    if done.ending is Ending.MEMORY:
        return Verdict(Outcome.MEMORY, f"over {limits.memory_megabytes} MB")
    if done.ending is Ending.OUTPUT:
        return Verdict(Outcome.RUNTIME_ERROR, f"over {limits.output_megabytes} MB of output")
    if done.exit_code == 0:
        return None
    last = done.stderr[-500:].decode(errors="replace").strip()
    if _NO_MEMORY.search(done.stderr):
        return Verdict(Outcome.MEMORY, last)
    if _SYNTAX.search(done.stderr) and b"Traceback" not in done.stderr:
        return Verdict(Outcome.COMPILE_ERROR, last)
    return Verdict(Outcome.RUNTIME_ERROR, f"exit code {done.exit_code}: {last}")


def _encoded(text: str) -> bytes:
    """UTF-8; half of a surrogate pair, which a model may write, becomes a question mark."""
    return text.encode("utf-8", "replace")


@lru_cache
def _harness(name: str) -> bytes:
    return files("sdzero.verify").joinpath("harness", name).read_bytes()
