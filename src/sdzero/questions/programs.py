"""What is needed to grade a program: its language, its limits and its tests. Imports no torch.

A question that asks for a program carries a `ProgramTask` as JSON in its metadata, under `program`.
Tests are of one of three kinds:

- `stdio`: the program reads standard input and writes standard output;
- `calls`: a function of the program (or a method of a class of it) is called with given arguments;
- `assertions`: a file of Python tests that calls functions of the program (HumanEval, MBPP).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sdzero.errors import UserError

METADATA_KEY = "program"
"""Where a question's metadata holds its task."""

Language = Literal["python", "cpp"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StdioCase(_Part):
    """One run of the program: what it reads and what it should write."""

    input: str
    output: str


class StdioTests(_Part):
    """Outputs are compared token by token (split at white space).

    With `tolerance`, tokens that are numbers may differ by that much, absolutely or relatively. `checker`
    is the source of a Python program for questions with more than one right output: it is run with the
    paths of the input, the expected output and the output to check as arguments, and prints a number, above 0
    if the output is right.
    """

    kind: Literal["stdio"] = "stdio"
    cases: list[StdioCase] = Field(min_length=1)
    tolerance: float | None = Field(default=None, ge=0)
    checker: str | None = None


class CallCase(_Part):
    """One call: positional arguments and the value that should be returned, both JSON-like."""

    arguments: list[Any]
    expected: Any


class CallTests(_Part):
    """`entry` is a function's name, or `Class.method`: a new object of the class for every call."""

    kind: Literal["calls"] = "calls"
    entry: str
    cases: list[CallCase] = Field(min_length=1)
    tolerance: float | None = Field(default=None, ge=0)


class AssertionTests(_Part):
    """Python code that fails by raising. `names` are the functions of the program that it calls.

    `preamble` runs before it, in the same namespace: imports and helper functions that the tests need.
    """

    kind: Literal["assertions"] = "assertions"
    names: list[str] = Field(min_length=1)
    code: str
    preamble: str = ""


class ProgramTask(_Part):
    """One task. `preamble` is code that stands before the response's program (such as imports).

    `time_seconds` (wall clock and CPU, of one test) and `memory_megabytes` are the question's own limits;
    without them those of the recipe hold.
    """

    language: Language = "python"
    preamble: str = ""
    time_seconds: float | None = Field(default=None, gt=0)
    memory_megabytes: int | None = Field(default=None, gt=0)
    tests: Annotated[StdioTests | CallTests | AssertionTests, Field(discriminator="kind")]

    @model_validator(mode="after")
    def _functions_are_of_python(self) -> Self:
        if self.language != "python" and (self.tests.kind != "stdio" or self.preamble):
            raise ValueError(f"a program in {self.language} is tested by `stdio`, and has no preamble")
        return self


def metadata_of(task: ProgramTask) -> dict[str, Any]:
    """The metadata of a question with this task."""
    return {METADATA_KEY: task.model_dump(mode="json")}


def task_of(metadata: Mapping[str, Any], where: str) -> ProgramTask:
    """The task in a question's metadata. Raises UserError, naming `where`, if it is missing or faulty."""
    if METADATA_KEY not in metadata:
        raise UserError(
            "the question has no tests, so no program can be graded",
            where,
            "take a source of program questions, or put a `program` object into the metadata",
        )
    try:
        return ProgramTask.model_validate(metadata[METADATA_KEY])
    except ValidationError as fault:
        first = fault.errors()[0]
        place = ".".join([METADATA_KEY, *(str(part) for part in first["loc"])])
        raise UserError(
            f"the tests of the question are faulty: {place}: {first['msg']}",
            where,
            "see sdzero.questions.programs.ProgramTask for what they must be",
        ) from fault
