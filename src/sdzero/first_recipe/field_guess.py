"""Which column holds what: guessed by name and by what stands in it, with the evidence in words."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sdzero.errors import UserError

QUESTION_NAMES = ("question", "problem", "prompt", "instruction", "query", "input", "task", "text")
ANSWER_NAMES = (
    *("answer", "final_answer", "expected_answer", "reference_answer", "ground_truth", "gold", "target"),
    *("label", "result", "output", "solution", "response"),
)
SOLUTION_NAMES = ("solution", "worked_solution", "rationale", "reasoning", "explanation", "cot")
ID_NAMES = ("id", "uuid", "question_id", "problem_id", "unique_id", "index")
KIND_NAMES = ("kind", "type", "problem_type", "category", "subject", "topic", "level", "difficulty")
MOST_KINDS = 50
MOST_ANSWER_CHARACTERS = 200
ENOUGH = 0.5
"""Share of rows that must have a value of the right kind."""


@dataclass(frozen=True)
class Column:
    """What stands in a column. `texts`, `words` (texts or numbers), `distinct` are counts of rows."""

    name: str
    rows: int
    texts: int
    words: int
    distinct: int
    mean_characters: float

    def evidence(self, reason: str) -> str:
        """What speaks for it."""
        return (
            f"`{self.name}`: {reason}; {self.words:,} of {self.rows:,} rows have a value,"
            f" {self.distinct:,} distinct, {self.mean_characters:.0f} characters on average"
        )


@dataclass(frozen=True)
class Fields:
    """The guess: column names, and for each what speaks for it. `others` might have been meant too."""

    question: str
    answer: str
    id: str | None
    kind: str | None
    solution: str | None
    evidence: dict[str, str]
    others: dict[str, list[str]]


def columns_of(rows: Sequence[dict[str, Any]]) -> list[Column]:
    """Every column that a row has, in the order in which they come."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [_column(name, [row.get(name) for row in rows]) for name in names]


def _column(name: str, values: Sequence[Any]) -> Column:
    words = [str(value).strip() for value in values if is_word(value)]
    return Column(
        name=name,
        rows=len(values),
        texts=sum(isinstance(value, str) and bool(value.strip()) for value in values),
        words=len(words),
        distinct=len(set(words)),
        mean_characters=sum(map(len, words)) / len(words) if words else 0.0,
    )


def is_word(value: Any) -> bool:
    """Whether a value is text that is not blank, or a finite number."""
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def guess_fields(
    rows: Sequence[dict[str, Any]], where: str, question: str | None = None, answer: str | None = None
) -> Fields:
    """Guess the columns; `question` and `answer` are those that the user named.

    Raises UserError if a named column is not there, or nothing looks like a question or an answer.
    """
    columns = {column.name: column for column in columns_of(rows)}
    evidence: dict[str, str] = {}
    others: dict[str, list[str]] = {}
    texts = [column for column in columns.values() if column.texts >= ENOUGH * column.rows]
    asked = _chosen(
        "question", question, QUESTION_NAMES, texts, columns, where, evidence, others, longest=True
    )
    words = [
        column
        for column in columns.values()
        if column.name != asked.name and column.words >= ENOUGH * column.rows
    ]
    answered = _chosen("answer", answer, ANSWER_NAMES, words, columns, where, evidence, others, longest=False)
    taken = {asked.name, answered.name}
    ids = (c for c in _named(ID_NAMES, columns.values()) if c.words == c.rows == c.distinct)
    kinds = (
        c for c in _named(KIND_NAMES, columns.values()) if c.words == c.rows and c.distinct <= MOST_KINDS
    )
    solutions = (c for c in _named(SOLUTION_NAMES, columns.values()) if c.texts == c.words and c.texts)
    found: dict[str, str | None] = {}
    for key, candidates in (("id", ids), ("kind", kinds), ("solution", solutions)):
        column = next((one for one in candidates if one.name not in taken), None)
        found[key] = None if column is None else column.name
        if column is not None:
            taken.add(column.name)
            evidence[key] = column.evidence(f"named like a {key}")
    return Fields(asked.name, answered.name, found["id"], found["kind"], found["solution"], evidence, others)


def _named(names: Sequence[str], columns: Iterable[Column]) -> list[Column]:
    """The columns with one of the names, in the order of the names; case does not matter."""
    by_name = {column.name.casefold(): column for column in columns}
    return [by_name[name] for name in names if name in by_name]


def _chosen(
    key: str,
    given: str | None,
    names: Sequence[str],
    fitting: Sequence[Column],
    columns: dict[str, Column],
    where: str,
    evidence: dict[str, str],
    others: dict[str, list[str]],
    longest: bool,
) -> Column:
    if given is not None:
        if given not in columns:
            raise UserError(
                f"there is no column `{given}`; the columns are: {', '.join(columns)}",
                where,
                f"pass --{key}-field with one of them",
            )
        evidence[key] = columns[given].evidence("named by you")
        return columns[given]
    named = _named(names, fitting)
    if not longest:  # an answer that can be checked is short: worked solutions come last
        named.sort(key=lambda column: column.mean_characters > MOST_ANSWER_CHARACTERS)
    if named:
        others[key] = [column.name for column in named[1:]]
        evidence[key] = named[0].evidence(f"named like {'an' if key == 'answer' else 'a'} {key}")
        return named[0]
    if longest and len(fitting) == 1:
        evidence[key] = fitting[0].evidence("the only column of texts")
        return fitting[0]
    raise UserError(
        f"no column looks like the {key}; the columns are: {', '.join(columns)}",
        where,
        f"pass --{key}-field with the column that holds it",
    )
