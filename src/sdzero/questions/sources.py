"""Where questions come from: built-in families, JSONL files, Hugging Face datasets, puzzles, code data sets.

Every source gives `Question`s; `load_questions` makes them distinct by text. The libraries that a
source needs are imported when that source is asked for.
"""

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdzero.errors import UserError
from sdzero.questions.question import Question
from sdzero.questions.splits import normalise
from sdzero.recipe import BUILT_IN, CODE_SOURCES, DataSettings, FieldMap
from sdzero.tiny.problem import Problem

logger = logging.getLogger(__name__)

Located = tuple[str, Question]
"""A question and where it stands (file and line, dataset and row), for error messages."""


class EmptyAnswerError(UserError):
    """A row without a reference answer; `data.faulty: drop` leaves it out."""


def load_questions(settings: DataSettings, empty_answers: bool = False) -> list[Question]:
    """All distinct questions of a source, in the source's order.

    With `empty_answers`, rows of `jsonl` and `huggingface` without an answer are questions whose answer is
    empty, and are counted in the log; where the same text stands there with an answer too, that one is kept.

    Texts are compared with runs of whitespace as one space. Duplicates with the same answer are merged
    into the first, and counted in the log. The same text with different answers is a UserError, except
    for reasoning-gym, whose scorers accept every right answer to a puzzle: there the first is kept.
    Every fault in the data is a UserError that names the file and line, or the dataset and row; with
    `faulty: drop`, rows without an answer and questions with two answers are left out and counted.
    """
    if settings.source in BUILT_IN:
        located = _built_in(settings.source)
    elif settings.source == "jsonl":
        located = _jsonl(settings, empty_answers)
    elif settings.source == "huggingface":
        located = _huggingface(settings, empty_answers)
    elif settings.source in CODE_SOURCES:
        from sdzero.questions.code import program_questions

        located = program_questions(settings)
    else:
        from sdzero.questions.puzzles import puzzle_questions

        located = ((f"reasoning-gym, {question.id}", question) for question in puzzle_questions(settings))
    one_answer = settings.source != "reasoning_gym"
    return _distinct(located, _describe(settings), one_answer, drop=settings.faulty == "drop")


def _describe(settings: DataSettings) -> str:
    return settings.path or f"source `{settings.source}`"


def _path(settings: DataSettings) -> str:
    assert settings.path is not None, "the recipe demands a path for this source"
    return settings.path


def _distinct(located: Iterable[Located], source: str, one_answer: bool, drop: bool) -> list[Question]:
    first: dict[str, Located] = {}
    places: dict[str, str] = {}
    ambiguous: set[str] = set()
    merged = 0
    for where, question in located:
        text = normalise(question.text)
        if text in first:
            first_where, kept = first[text]
            if not kept.answer and question.answer:
                # The answer of the one, the place and the id of the other: ids stay those of first rows.
                first[text] = (first_where, replace(question, id=kept.id))
            elif one_answer and question.answer and kept.answer != question.answer:
                if drop:
                    ambiguous.add(text)
                    continue
                raise UserError(
                    f"the same question has two answers, {kept.answer!r} and {question.answer!r}",
                    where=f"{first_where} and {where}: {text[:120]}",
                    todo="keep the right one of the two, or set data.faulty=drop to leave out both",
                )
            merged += 1
            continue
        if question.id in places:
            raise UserError(
                f"two questions have the id {question.id!r}",
                where=f"{places[question.id]} and {where}",
                todo="make ids unique, or leave `fields.id` unset so that the row number is the id",
            )
        first[text] = (where, question)
        places[question.id] = where
    if not first:
        raise UserError(
            "there is no question in the data", where=source, todo="check path, split and content"
        )
    if ambiguous:
        logger.warning("%s: %d questions with two answers left out", source, len(ambiguous))
    if merged:
        logger.info("%s: %d duplicate questions merged, %d are distinct", source, merged, len(first))
    return [question for text, (_, question) in first.items() if text not in ambiguous]


def _kept(
    rows: Iterable[tuple[str, str, Mapping[str, Any]]], settings: DataSettings, empty_answers: bool
) -> Iterator[Located]:
    """Questions of (where, default id, row); rows without an answer follow `settings.faulty`, unless empty
    answers are asked for."""
    dropped = empty = 0
    for where, default_id, row in rows:
        try:
            question = question_from_row(row, settings.fields, where, default_id, empty_answers)
        except EmptyAnswerError:
            if settings.faulty == "error":
                raise
            dropped += 1
            continue
        empty += not question.answer
        yield where, question
    if empty:
        logger.info("%s: %d rows without an answer, for n1 and n2 only", _describe(settings), empty)
    if dropped:
        logger.warning("%s: %d rows without an answer left out", _describe(settings), dropped)


def _built_in(name: str) -> Iterator[Located]:
    """The questions of a world that its embedded model was not pre-trained on, with worked solutions."""
    from sdzero.tiny.worlds import WORLDS

    world = WORLDS[name]
    for index, problem in enumerate(world.post_training_problems()):
        yield (
            f"built-in {name}",
            Question(
                id=problem.text,
                text=problem.text,
                answer=str(problem.answer),
                kind=problem.kind,
                metadata=_built_in_metadata(name, problem, index),
                solution=world.solution(problem, True, False),
            ),
        )


def _built_in_metadata(name: str, problem: Problem, index: int) -> dict[str, Any]:
    """What a family's verifier needs beside the answer."""
    if name == "spelling":
        return _spelling_metadata(problem, index)
    if name == "edits":
        from sdzero.questions.programs import metadata_of
        from sdzero.tiny.edits import task_of_problem

        return metadata_of(task_of_problem(problem))
    return {}


def _spelling_metadata(problem: Problem, index: int) -> dict[str, Any]:
    """The entry that reasoning-gym would have made of the word, so that its own scorer grades answers."""
    from sdzero.questions.puzzles import encode
    from sdzero.tiny.spelling import TASK, WORD_LENGTHS

    (word,) = problem.operands
    entry = {
        "question": problem.text,
        "answer": problem.answer,
        "metadata": {
            "source_dataset": TASK,
            "source_index": index,
            "word": word,
            "word_len": len(word),
            "difficulty": {"word_len": WORD_LENGTHS},
        },
    }
    return {"task": TASK, "arguments": {}, "entry": encode(entry)}


def _jsonl(settings: DataSettings, empty_answers: bool) -> Iterator[Located]:
    """One JSON object a line; blank lines are skipped; the default id is the line number."""
    rows = json_rows(Path(_path(settings)).expanduser(), settings.fields)
    if empty_answers:
        # A file of questions need not have the column in every line.
        rows = ((where, number, {settings.fields.answer: None, **row}) for where, number, row in rows)
    return _kept(rows, settings, empty_answers)


def json_rows(file: Path, fields: FieldMap) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The objects of a JSONL file, each with its place and its line number. UserError for any other line."""
    if not file.is_file():
        raise UserError(
            "there is no such file" if not file.exists() else "this is not a file",
            where=str(file),
            todo="set data.path to a JSONL file, one question a line",
        )
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}:{number}"
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as fault:
                raise UserError(
                    f"the line is not UTF-8 (byte {fault.start + 1})", where, "save the file as UTF-8"
                ) from fault
            except json.JSONDecodeError as fault:
                raise UserError(
                    f"the line is not JSON: {fault.msg} (column {fault.colno})",
                    where,
                    "write one whole JSON object a line",
                ) from fault
            except RecursionError as fault:
                raise UserError("the line is nested too deeply", where, "use plain columns") from fault
            if not isinstance(row, dict):
                raise UserError(
                    f"the line is a JSON {type(row).__name__}, not an object",
                    where,
                    f'write {{"{fields.question}": ..., "{fields.answer}": ...}}',
                )
            yield where, str(number), row


def _huggingface(settings: DataSettings, empty_answers: bool) -> Iterator[Located]:
    from sdzero.questions.huggingface import open_dataset

    path, fields = _path(settings), settings.fields
    dataset = open_dataset(path, settings.subset, settings.split)
    wanted = [fields.question, fields.answer, fields.id, fields.kind, *fields.metadata]
    columns = list(dict.fromkeys(column for column in wanted if column is not None))
    for key, column in _columns(fields):
        if column not in dataset.column_names:
            raise _missing_column(key, column, dataset.column_names, f"{path}, split {settings.split}")
    # Other columns may hold images or audio, which would be decoded for nothing.
    place = f"{path}, split {settings.split}, row"
    rows = enumerate(dataset.select_columns(columns))
    located = ((f"{place} {index}", str(index), row) for index, row in rows)
    yield from _kept(located, settings, empty_answers)


def _columns(fields: FieldMap) -> Iterator[tuple[str, str]]:
    """The recipe keys of the field map, with the columns that they name."""
    yield "question", fields.question
    yield "answer", fields.answer
    if fields.id is not None:
        yield "id", fields.id
    if fields.kind is not None:
        yield "kind", fields.kind
    if fields.solution is not None:
        yield "solution", fields.solution
    for column in fields.metadata:
        yield "metadata", column


def _missing_column(key: str, column: str, existing: Iterable[str], where: str) -> UserError:
    names = ", ".join(existing) or "none"
    return UserError(
        f"there is no column `{column}`; the columns are: {names}",
        where=where,
        todo=f"set data.fields.{key} to the column that holds it",
    )


def question_from_row(
    row: Mapping[str, Any], fields: FieldMap, where: str, default_id: str, empty_answer: bool = False
) -> Question:
    """Make a question of one row of data; with `empty_answer` it may be without an answer.

    Raises UserError, which names `where`, for every fault.
    """
    for key, column in _columns(fields):
        if column not in row:
            raise _missing_column(key, column, row, where)
    kind = "" if fields.kind is None or row[fields.kind] is None else _word(row, fields.kind, where)
    return Question(
        id=default_id if fields.id is None else _word(row, fields.id, where),
        text=_text(row[fields.question], fields.question, where),
        answer="" if empty_answer and _is_empty(row[fields.answer]) else _answer(row, fields.answer, where),
        kind=kind,
        metadata={column: _json_like(row[column], column, where) for column in fields.metadata},
        solution="" if fields.solution is None else _solution(row[fields.solution], fields.solution, where),
    )


def _solution(value: Any, column: str, where: str) -> str:
    """A worked solution; a row may be without one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"the solution in column `{column}` is {_a_kind_of(value)}, not text",
            where,
            "name a column of strings in data.fields.solution",
        )
    return value


def _text(value: Any, column: str, where: str) -> str:
    if isinstance(value, str):
        if not value.strip():
            raise UserError(
                f"the question in column `{column}` is empty", where, "fill it in or drop the row"
            )
        return value
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        raise UserError(
            f"column `{column}` holds a list of chat messages, not a question",
            where,
            "make a column with the text of the user's message; a system prompt goes to chat.system_prompt",
        )
    raise UserError(
        f"the question in column `{column}` is {_a_kind_of(value)}, not text",
        where,
        "name a column of strings in data.fields.question",
    )


def _answer(row: Mapping[str, Any], column: str, where: str) -> str:
    if _is_empty(row[column]):
        raise EmptyAnswerError(
            f"the answer in column `{column}` is empty", where, "fill it in, or set data.faulty=drop"
        )
    return _word(row, column, where)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _word(row: Mapping[str, Any], column: str, where: str) -> str:
    """A value that is text or a finite number, as text."""
    value = row[column]
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if is_number or (isinstance(value, str) and value.strip()):
        return str(value).strip()
    raise UserError(
        f"column `{column}` is {_a_kind_of(value)}; it must be text or a number",
        where,
        "write it as a string",
    )


def _json_like(value: Any, column: str, where: str) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as fault:
        raise UserError(
            f"column `{column}` cannot be kept as metadata: {fault}",
            where,
            "metadata must be JSON-like: text, numbers, lists, objects",
        ) from fault


def _a_kind_of(value: Any) -> str:
    if value is None or value == "":
        return "empty"
    return f"{value!r}" if isinstance(value, bool | float) else f"of type {type(value).__name__}"
