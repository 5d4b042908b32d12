"""What a data file holds: questions, duplicates, answers, and which verifier can grade them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sdzero.errors import UserError
from sdzero.first_recipe.data_file import SOURCES, format_of, read_rows
from sdzero.first_recipe.field_guess import MOST_ANSWER_CHARACTERS, Fields, guess_fields, is_word
from sdzero.questions.question import Question
from sdzero.questions.splits import normalise
from sdzero.verify.pool import VerifierPool
from sdzero.verify.verdict import Outcome

TRIED = 200
"""How many answers are given to the verifier."""
ENOUGH_GRADED = 0.8
SECONDS_AN_ANSWER = 5.0
WORKED_MARK = "####"
"""What stands before the final answer in GSM8K's worked solutions."""
CODE_SIGNS = {
    "livecodebench": {"public_test_cases", "private_test_cases"},
    "codeforces": {"official_tests"},
    "mbpp": {"test_list"},
    "humaneval": {"prompt", "entry_point", "test"},
}
"""Columns by which a file is one of the code data sets that sdzero reads itself."""

VerifierName = Literal["math", "code", "puzzle"]


@dataclass(frozen=True)
class DataLook:
    """What was found. `questions` are the distinct ones that can be used; `fields` is None for a source that
    reads its own columns. `evidence` says why this verifier, `remarks` what to look at."""

    path: str
    source: str
    verifier: VerifierName
    evidence: str
    rows: int
    questions: tuple[str, ...]
    fields: Fields | None = None
    metadata: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    duplicates: int = 0
    conflicts: int = 0
    empty: int = 0
    remarks: tuple[str, ...] = field(default=())


def look_at_data(path: str, question: str | None = None, answer: str | None = None) -> DataLook:
    """Look at a JSONL, CSV or parquet file; `question` and `answer` are columns that the user named.

    Raises UserError for a file that cannot be read, and for answers that no verifier of ours can grade.
    """
    file = Path(path).expanduser()
    rows = read_rows(file)
    columns = set(rows[0])
    for source, signs in CODE_SIGNS.items():
        if signs <= columns:
            return _code_data_set(path, source, rows, sorted(signs))
    tasks = _puzzle_tasks(rows)
    if tasks:
        return _puzzles(path, rows, tasks)
    fields = guess_fields(rows, str(file), question, answer)
    counted = _count(rows, fields, str(file))
    remarks = [
        f"other columns that may be the {key}: {', '.join(names)}"
        for key, names in fields.others.items()
        if names
    ]
    programs = sum(_is_program(row.get("program")) for row in rows)
    source = SOURCES[format_of(file)]
    if programs == len(rows):
        evidence = "the column `program` has a language and tests in every row"
        return DataLook(
            path, source, "code", evidence, len(rows), fields=fields, metadata=("program",),
            remarks=tuple(remarks), **counted,
        )  # fmt: skip
    evidence = _graded_by_math(rows, fields, str(file))
    return DataLook(
        path, source, "math", evidence, len(rows), fields=fields, remarks=tuple(remarks), **counted
    )


def _count(rows: Sequence[dict[str, Any]], fields: Fields, where: str) -> dict[str, Any]:
    """Distinct questions, duplicates with the same answer, questions with two answers, empty rows.

    Raises UserError for what a run would refuse: a question that is no text, an answer that is no word.
    """
    answers: dict[str, str] = {}
    texts: dict[str, str] = {}
    conflicting: set[str] = set()
    duplicates = empty = 0
    for number, row in enumerate(rows, 1):
        asked, answer = row.get(fields.question), row.get(fields.answer)
        if not isinstance(asked, str) or not asked.strip():
            raise _unusable("question", fields.question, f"{where}: row {number}")
        if answer is None or (isinstance(answer, str) and not answer.strip()):
            empty += 1
            continue
        if not is_word(answer):
            raise _unusable("answer", fields.answer, f"{where}: row {number}")
        text, own = normalise(asked), str(answer).strip()
        if text not in answers:
            answers[text], texts[text] = own, asked
        elif answers[text] == own:
            duplicates += 1
        else:
            conflicting.add(text)
    kept = tuple(asked for text, asked in texts.items() if text not in conflicting)
    return {"questions": kept, "duplicates": duplicates, "conflicts": len(conflicting), "empty": empty}


def _unusable(key: str, column: str, where: str) -> UserError:
    kind = "text" if key == "question" else "text or a finite number"
    return UserError(
        f"the {key} in column `{column}` is not {kind}",
        where,
        f"mend or remove the row, or name another column with --{key}-field",
    )


def _graded_by_math(rows: Sequence[dict[str, Any]], fields: Fields, where: str) -> str:
    """Give answers to the mathematics verifier, each in a box as a right response; what came out, in words.

    Raises UserError if it cannot read them.
    """
    answers = [str(row[fields.answer]).strip() for row in rows if is_word(row.get(fields.answer))]
    tried = random.Random(0).sample(answers, min(TRIED, len(answers)))
    worked = sum(WORKED_MARK in answer for answer in tried)
    if worked >= ENOUGH_GRADED * len(tried):
        raise UserError(
            f"the answers in column `{fields.answer}` are worked solutions that end in"
            f" `{WORKED_MARK} ANSWER`",
            where,
            f"make a column with what stands behind `{WORKED_MARK}`, and pass --answer-field with its name",
        )
    short = [answer for answer in tried if len(answer) <= MOST_ANSWER_CHARACTERS and "\n" not in answer]
    with VerifierPool("math", workers=1, timeout_seconds=SECONDS_AN_ANSWER) as pool:
        verdicts = pool.grade([(Question(answer, "", answer), f"\\boxed{{{answer}}}") for answer in short])
    right = sum(verdict.outcome is Outcome.CORRECT for verdict in verdicts)
    if right < ENOUGH_GRADED * len(tried):
        raise UserError(
            f"the verifier `math` reads {right} of {len(tried)} answers of column `{fields.answer}`, and"
            " there are no tests or puzzles that another one could use",
            where,
            "name the column of short final answers with --answer-field, or write a verifier of your own"
            " (docs/verifiers.md)",
        )
    return f"`math` reads {right} of {len(tried)} answers tried, each put into a box, as right"


def _is_program(value: Any) -> bool:
    return isinstance(value, dict) and {"language", "tests"} <= set(value)


def _puzzle_tasks(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The reasoning-gym tasks that the rows were made by, if all of them say so."""
    found = []
    for row in rows:
        entry = row.get("metadata")
        task = entry.get("source_dataset") if isinstance(entry, dict) else None
        if not isinstance(task, str):
            return ()
        found.append(task)
    return tuple(dict.fromkeys(found))


def _puzzles(path: str, rows: Sequence[dict[str, Any]], tasks: tuple[str, ...]) -> DataLook:
    texts = tuple(dict.fromkeys(str(row.get("question", "")) for row in rows))
    return DataLook(
        path=path,
        source="reasoning_gym",
        verifier="puzzle",
        evidence=f"every row says that reasoning-gym made it (`metadata.source_dataset`: {', '.join(tasks)})",
        rows=len(rows),
        questions=texts,
        tasks=tasks,
        duplicates=len(rows) - len(texts),
        remarks=(
            "the puzzles are made anew by reasoning-gym, with its own settings of each task; the file itself"
            " is not read by the run",
        ),
    )


def _code_data_set(path: str, source: str, rows: Sequence[dict[str, Any]], signs: Sequence[str]) -> DataLook:
    from sdzero.questions.sources import load_questions
    from sdzero.recipe import DataSettings

    settings = DataSettings.model_validate(
        {"source": source, "path": path, "faulty": "drop", "n1": 1, "n2": 1, "test": 1}
    )
    texts = tuple(question.text for question in load_questions(settings))
    return DataLook(
        path=path,
        source=source,
        verifier="code",
        evidence=f"the columns {', '.join(f'`{name}`' for name in signs)} are those of `{source}`",
        rows=len(rows),
        questions=texts,
        empty=len(rows) - len(texts),
        remarks=("programs of the model are run: `sdzero doctor` tries the sandbox",),
    )
