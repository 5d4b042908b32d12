"""What the sources of code questions share: columns, instructions, and the choice of tests and language.

Imports no torch.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from sdzero.errors import UserError
from sdzero.questions.programs import METADATA_KEY, Language, ProgramTask, metadata_of
from sdzero.questions.question import Question
from sdzero.questions.splits import normalise

Row = Mapping[str, Any]

Item = TypeVar("Item")

BLOCK_INSTRUCTION = "End your response with"

LANGUAGE_NAMES: dict[Language, str] = {"python": "Python 3", "cpp": "C++"}


SURROGATE = re.compile("[\ud800-\udfff]")


class LeftOutError(Exception):
    """A row without a fault that cannot be graded here. Its text is the reason, for counting."""


def require_columns(existing: Iterable[str], wanted: Sequence[str], where: str) -> None:
    """Raise UserError, with the columns that there are, unless each of `wanted` is there.

    One of `wanted` may be a choice such as `text|prompt`: one of the two is enough.
    """
    existing = list(existing)
    for column in wanted:
        choice = column.split("|")
        if not any(name in existing for name in choice):
            names = " or ".join(f"`{name}`" for name in choice)
            raise UserError(
                f"there is no column {names}; the columns are: {', '.join(existing) or 'none'}",
                where,
                "check that data.path, data.subset and data.split fit data.source",
            )


def text_of(row: Row, column: str, where: str) -> str:
    """The text in a column. Raises UserError if it is missing, empty or not text."""
    text = optional_text(row, column, where)
    if not text.strip():
        raise UserError(f"column `{column}` is empty", where, "fill it in, or set data.faulty=drop")
    return text


def optional_text(row: Row, column: str, where: str) -> str:
    """The text in a column with line ends as `\\n`; empty if the column or its value is missing."""
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"column `{column}` is of type {type(value).__name__}, not text", where, "write it as a string"
        )
    return value.replace("\r\n", "\n")


def name_of(row: Row, column: str, default: str) -> str:
    """An id: text or a number, as text; the default if there is none."""
    value = row.get(column)
    return default if value is None or value == "" else str(value)


def limit_of(row: Row, column: str, where: str) -> float | None:
    """A positive number, or None if the row has none."""
    value = row.get(column)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(
            f"column `{column}` is {value!r}, not a number above 0",
            where,
            "correct the row, or leave it empty",
        )
    return float(value)


def list_of(row: Row, column: str, where: str) -> list[Any]:
    """A list, also one that is written as JSON text (as in a CSV file); empty if there is none."""
    value = row.get(column)
    if isinstance(value, str):
        value = parse_json(value, f"column `{column}`", where) if value.strip() else None
    if value is None:
        return []
    if not isinstance(value, list):
        raise UserError(
            f"column `{column}` is of type {type(value).__name__}, not a list",
            where,
            "write it as a list, or as JSON text of a list",
        )
    return value


def parse_json(text: str, what: str, where: str) -> Any:
    """The value of JSON text. Raises UserError for other text, and for NaN and infinities."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as fault:
        raise UserError(f"{what} is nested too deeply", where, "correct or remove the row") from fault
    except ValueError as fault:
        raise UserError(f"{what} is not JSON: {fault}", where, "correct or remove the row") from fault


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def input_output(case: Any, what: str, where: str) -> dict[str, str]:
    """A test's input and output. Raises UserError unless both are text that can be written as UTF-8."""
    for key in ("input", "output"):
        text = case.get(key) if isinstance(case, Mapping) else None
        fault = None if isinstance(text, str) else f"a test in {what} has no text under `{key}`"
        if isinstance(text, str) and SURROGATE.search(text):
            fault = f"a test in {what} has half of a surrogate pair under `{key}`"
        if fault is not None:
            raise UserError(fault, where, "correct the row, or set data.faulty=drop")
    return {"input": case["input"], "output": case["output"]}


def spread(items: Sequence[Item], most: int | None) -> list[Item]:
    """At most `most` of the items, evenly spaced and in order.

    The first and the last are kept: contests put small tests first and large ones last, so that the first
    few alone would let slow programs pass.
    """
    if most is None or len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[position * (len(items) - 1) // (most - 1)] for position in range(most)]


def language_of(statement: str, languages: Iterable[Language]) -> Language:
    """The one language in which a problem is asked: by hash of its statement, each for an equal share.

    It depends neither on the order of the data nor on that of the languages.
    """
    choice = sorted(set(languages))
    digest = hashlib.sha256(f"language\n{normalise(statement)}".encode("utf-8", "surrogatepass")).digest()
    return choice[int.from_bytes(digest[:8]) % len(choice)]


def ask_for_program(language: Language) -> str:
    """The instruction for a program that reads standard input."""
    return (
        f"Write a {LANGUAGE_NAMES[language]} program that solves this problem. It reads standard input and"
        f" writes standard output. {_ask_for_block('the whole program', language)}"
    )


def ask_for_functions(names: Sequence[str]) -> str:
    """The instruction for Python functions with these names."""
    listed = " and ".join(f"`{name}`" for name in names)
    which = "function" if len(names) == 1 else "functions"
    return f"Write the {which} {listed} in Python 3. {_ask_for_block('your code', 'python')}"


def _ask_for_block(what: str, language: Language) -> str:
    return f"{BLOCK_INSTRUCTION} {what} in one fenced code block that begins with ```{language}."


def statement_of(text: str) -> str:
    """The text of a program question without the instruction that every such text ends with."""
    statement, _, instruction = text.rpartition("\n\n")
    return statement if BLOCK_INSTRUCTION in instruction else text


def fenced(code: str, language: str = "") -> str:
    """Code as a fenced block."""
    code = code.strip("\n")
    return f"```{language}\n{code}\n```"


def program_question(
    where: str,
    name: str,
    text: str,
    task: dict[str, Any],
    kind: str = "",
    solution: str = "",
    **metadata: Any,
) -> Question:
    """The question of a task, which is given as JSON-like data for `ProgramTask`.

    Its answer, which no model sees, is a hash of the tests: it tells the same text with other tests apart.
    Raises UserError, naming `where`, if the task cannot be kept.
    """
    try:
        kept = metadata_of(ProgramTask.model_validate(task))
    # pydantic's faults of validation and of serialisation are both ValueErrors.
    except ValueError as fault:
        reason = " ".join(str(fault).split())[:300]
        raise UserError(
            f"the tests cannot be kept: {reason}", where, "correct the row, or set data.faulty=drop"
        ) from fault
    tests = json.dumps(kept[METADATA_KEY]["tests"], sort_keys=True)
    digest = hashlib.sha256(tests.encode()).hexdigest()
    return Question(name, text, f"sha256:{digest}", kind, {**kept, **metadata}, solution)
