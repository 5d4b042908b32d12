"""Problems of Codeforces, with the columns of open-r1/codeforces or of open-r1/codeforces-cots.

What the columns hold is told by https://huggingface.co/datasets/open-r1/codeforces and
https://huggingface.co/datasets/open-r1/codeforces-cots. Imports no torch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sdzero.errors import UserError
from sdzero.questions.program_rows import (
    LeftOutError,
    Row,
    ask_for_program,
    fenced,
    input_output,
    language_of,
    limit_of,
    list_of,
    name_of,
    optional_text,
    parse_json,
    program_question,
    spread,
)
from sdzero.questions.programs import Language
from sdzero.questions.question import Question

CONTEST_TESTS = ("public_tests", "private_tests", "generated_tests")
"""Columns of codeforces-cots with tests from CodeContests: one object with lists `input` and `output`."""

REQUIRED = ("description", "official_tests|public_tests|private_tests|examples")
OPTIONAL = (
    *("id", "title", "input_format", "output_format", "interaction_format", "note", "examples"),
    *("time_limit", "memory_limit", "input_mode", "executable"),
    *("official_tests", "official_tests_complete", "generated_checker", *CONTEST_TESTS),
)

PYTHON_TIME_FACTOR = 1.0
"""Codeforces gives every language the same time, and so do we; `verifier.sandbox.time_factor` gives more."""

TESTS_FROM = "tests_from"
"""Where a question's metadata says which tests it has, `OFFICIAL` or one of the weaker kinds."""

OFFICIAL = "official tests"
INCOMPLETE = "incomplete official tests"
CONTESTS = "tests of CodeContests"
EXAMPLES = "the statement's examples only"


def codeforces_question(
    row: Row,
    where: str,
    default_id: str,
    languages: Sequence[Language],
    max_tests: int | None = None,
    solution: str | None = None,
) -> Question:
    """The question of one row; its kind is its language. `solution` names a column with a worked solution.

    Only complete official tests are the contest's own grading. Without them, the tests are the other ones
    that the row has, or else the examples in the statement. `executable` is the data set's word for: human
    submissions were run on these tests, and the results agree with the contest's. Columns that the data do
    not have (codeforces-cots has no input mode, checker or official tests) restrict nothing.

    Raises LeftOutError for a problem that cannot be graded, UserError for a fault in the row.
    """
    if optional_text(row, "interaction_format", where).strip():
        raise LeftOutError("interactive")
    if "input_mode" in row and row["input_mode"] != "stdio":
        raise LeftOutError("not read from standard input")
    if "executable" in row and row["executable"] is not True:
        raise LeftOutError("not executable")
    statement = _statement(row, where)
    cases, origin = _tests(row, where)
    language = language_of(statement, languages)
    seconds, megabytes = limit_of(row, "time_limit", where), limit_of(row, "memory_limit", where)
    if seconds is not None and language == "python":
        seconds *= PYTHON_TIME_FACTOR
    task = {
        "language": language,
        "time_seconds": seconds,
        "memory_megabytes": None if megabytes is None else math.ceil(megabytes),
        "tests": {
            "kind": "stdio",
            "cases": spread(cases, max_tests),
            "checker": optional_text(row, "generated_checker", where) or None,
        },
    }
    return program_question(
        where,
        name_of(row, "id", default_id),
        f"{statement}\n\n{ask_for_program(language)}",
        task,
        kind=language,
        solution="" if solution is None else optional_text(row, solution, where),
        **{TESTS_FROM: origin},
    )


def _statement(row: Row, where: str) -> str:
    """The statement as a contest shows it: title, limits, story, Input, Output, Examples, Note."""
    description = optional_text(row, "description", where).strip()
    if not description:
        raise LeftOutError("without a statement")
    seconds, megabytes = limit_of(row, "time_limit", where), limit_of(row, "memory_limit", where)
    limits = []
    if seconds is not None:
        limits.append(f"Time limit: {seconds:g} second{'' if seconds == 1 else 's'}")
    if megabytes is not None:
        limits.append(f"Memory limit: {megabytes:g} megabytes")
    parts = [optional_text(row, "title", where).strip(), "\n".join(limits), description]
    for heading, column in (("Input", "input_format"), ("Output", "output_format")):
        parts.append(_section(heading, optional_text(row, column, where)))
    examples = [input_output(case, "column `examples`", where) for case in list_of(row, "examples", where)]
    shown = [f"Input:\n{fenced(case['input'])}\nOutput:\n{fenced(case['output'])}" for case in examples]
    parts.append(_section("Example" if len(shown) == 1 else "Examples", "\n\n".join(shown)))
    parts.append(_section("Note", optional_text(row, "note", where)))
    return "\n\n".join(part for part in parts if part)


def _section(heading: str, text: str) -> str:
    return f"{heading}\n\n{text.strip()}" if text.strip() else ""


def _tests(row: Row, where: str) -> tuple[list[dict[str, str]], str]:
    """The strongest tests of a row, and where they come from."""
    official = _cases(row, "official_tests", where)
    complete = row.get("official_tests_complete") is True
    contests = [case for column in CONTEST_TESTS for case in _cases(row, column, where)]
    choice = [
        (official if complete else [], OFFICIAL),
        (contests, CONTESTS),
        (official, INCOMPLETE),
        (_cases(row, "examples", where), EXAMPLES),
    ]
    for cases, origin in choice:
        if cases:
            return cases, origin
    raise LeftOutError("without tests")


def _cases(row: Row, column: str, where: str) -> list[dict[str, str]]:
    """The tests in a column: a list of objects, or one object with lists `input` and `output`."""
    value = row.get(column)
    # open-r1/codeforces has under `generated_tests` how many tests there are in another file.
    if value is None or isinstance(value, int):
        return []
    if isinstance(value, str) and value.strip():
        value = parse_json(value, f"column `{column}`", where)
    if isinstance(value, Mapping):
        value = _pairs(value, column, where)
    return [
        input_output(case, f"column `{column}`", where) for case in list_of({column: value}, column, where)
    ]


def _pairs(tests: Mapping[str, Any], column: str, where: str) -> list[dict[str, Any]]:
    inputs, outputs = tests.get("input"), tests.get("output")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise UserError(
            f"column `{column}` has not as many inputs as outputs",
            where,
            "correct the row, or set data.faulty=drop",
        )
    return [{"input": given, "output": wanted} for given, wanted in zip(inputs, outputs, strict=True)]
