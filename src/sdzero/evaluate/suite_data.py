"""The questions of a benchmark: from a local copy (a folder, or one file), or from the hub.

Every fault is a UserError that names the benchmark and its place, and says what a copy must be like.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdzero.errors import UserError
from sdzero.evaluate.suites import HELD_OUT_SEED, Benchmark
from sdzero.questions.code import COLUMNS
from sdzero.questions.huggingface import BUILDERS, open_dataset
from sdzero.questions.question import Question
from sdzero.questions.sources import EmptyAnswerError, json_rows, load_questions
from sdzero.questions.splits import normalise, rank_questions
from sdzero.recipe import DataSettings

SPLIT_COLUMN = "split"
"""A column of this name says of each row which split it is of; it must say the benchmark's."""


@dataclass(frozen=True)
class BenchmarkQuestions:
    """The questions that are asked. `place` is the hub id or the copy's path; `passed_over` counts questions
    that a held-out part would have, but that the recipe trains on: the next of the ranking stand for them."""

    benchmark: Benchmark
    questions: list[Question]
    place: str
    passed_over: int = 0

    @property
    def surprise(self) -> str | None:
        """A sentence if there are more or fewer questions than there should be."""
        wanted = self.benchmark.expected
        if wanted is None or len(self.questions) == wanted:
            return None
        return f"{self.benchmark.title} has {wanted} questions, but {self.place} gives {len(self.questions)}"


def find_copies(benchmarks: Iterable[Benchmark], folder: Path) -> dict[str, Path]:
    """The local copy of each benchmark: a folder `NAME`, or a file `NAME.jsonl` (.parquet, .json, .csv).

    Raises UserError if the folder or any copy is missing (all of them are told), or if one has two copies.
    """
    if not folder.is_dir():
        raise UserError("there is no folder of benchmarks here", str(folder), "pass its path as --suite-data")
    found: dict[str, Path] = {}
    missing = []
    for benchmark in benchmarks:
        choices = [folder / benchmark.name, *(folder / f"{benchmark.name}{suffix}" for suffix in BUILDERS)]
        own = [path for path in choices if path.exists()]
        if len(own) > 1:
            raise UserError(
                f"the benchmark {benchmark.name} has two copies: {', '.join(path.name for path in own)}",
                str(folder),
                "keep one of them",
            )
        if own:
            found[benchmark.name] = own[0]
        else:
            missing.append(benchmark)
    if missing:
        raise UserError(
            f"no copy of {', '.join(one.name for one in missing)} is here (a folder of that name, or a file"
            f" with .jsonl, .parquet, .json or .csv after it)",
            str(folder),
            "copy what is missing, or score single benchmarks with --suite NAME. Where there is a network:"
            + "".join(f"\n    {copy_command(one, folder)}" for one in missing),
        )
    return found


def copy_command(benchmark: Benchmark, folder: Path | str) -> str:
    """The command that copies what is needed of a benchmark from the hub, on a machine with a network."""
    patterns = " ".join(f"--include '{pattern}'" for pattern in benchmark.files)
    target = f"{folder}/{benchmark.name}"
    return f"hf download {benchmark.hub} --repo-type dataset {patterns} --local-dir {target}"


def load_benchmark(
    benchmark: Benchmark,
    copy: Path | None = None,
    training: Collection[str] = (),
    max_tests: int | None = None,
) -> BenchmarkQuestions:
    """All questions of a benchmark, from its copy or else from the hub.

    `training` are the texts that the recipe trains on, normalised: no held-out part has one of them.
    """
    place = benchmark.hub if copy is None else str(copy)
    settings = _settings(benchmark, copy, max_tests)
    try:
        _check_split_column(benchmark, settings, copy)
        questions = load_questions(settings)
    except UserError as fault:
        raise _told(fault, benchmark, copy) from fault
    passed_over = 0
    if benchmark.held_out is not None:
        ranked = rank_questions(questions, HELD_OUT_SEED)
        free = [one for one in ranked if normalise(one.text) not in training]
        passed_over = sum(normalise(one.text) in training for one in ranked[: benchmark.held_out])
        questions = free[: benchmark.held_out]
    if not questions:
        raise UserError(
            "the recipe trains on every question of the held-out part",
            f"benchmark {benchmark.name}: {place}",
            "bring the whole data set, or lower data.n1 and data.n2",
        )
    return BenchmarkQuestions(benchmark, questions, place, passed_over)


def _settings(benchmark: Benchmark, copy: Path | None, max_tests: int | None) -> DataSettings:
    is_code = benchmark.verifier == "code"
    lines = copy is not None and copy.suffix == ".jsonl" and not is_code
    return DataSettings.model_validate(
        {
            "source": "jsonl" if lines else benchmark.source,
            "path": benchmark.hub if copy is None else str(copy),
            "subset": benchmark.subset if copy is None else _subset_of_copy(benchmark, copy),
            "split": benchmark.split,
            "fields": benchmark.fields.model_dump(),
            "languages": list(benchmark.languages),
            "max_tests": max_tests if is_code else None,
            "faulty": benchmark.faulty,
            # How the sets of a run are cut plays no part here.
            **{"n1": 1, "n2": 1, "test": 1},
        }
    )


def _subset_of_copy(benchmark: Benchmark, copy: Path) -> str | None:
    """The benchmark's subset, if the copy is a snapshot of the hub whose card names it."""
    card = copy / "README.md"
    if benchmark.subset is None or not card.is_file():
        return None
    name = rf"^\s*(-\s+)?config_name:\s*['\"]?{re.escape(benchmark.subset)}['\"]?\s*$"
    return benchmark.subset if re.search(name, card.read_text(errors="replace"), re.MULTILINE) else None


def _check_split_column(benchmark: Benchmark, settings: DataSettings, copy: Path | None) -> None:
    """Raise UserError for a row that says it is of another split than the benchmark's."""
    rows: Iterable[tuple[str, Mapping[str, Any]]]
    if settings.source == "jsonl":
        assert copy is not None
        rows = ((where, row) for where, _, row in json_rows(copy, settings.fields))
    else:
        assert settings.path is not None
        dataset = open_dataset(settings.path, settings.subset, settings.split)
        if SPLIT_COLUMN not in dataset.column_names:
            return
        rows = ((f"row {i}", row) for i, row in enumerate(dataset.select_columns([SPLIT_COLUMN])))
    for where, row in rows:
        named = row.get(SPLIT_COLUMN)
        if named is not None and named != benchmark.split:
            raise UserError(
                f"the row is of split `{named}`, and the benchmark is split `{benchmark.split}`", where
            )


def _told(fault: UserError, benchmark: Benchmark, copy: Path | None) -> UserError:
    """The fault with the benchmark's name, and with what to do about the benchmark."""
    where = f"benchmark {benchmark.name}: {fault.where or (copy or benchmark.hub)}"
    if isinstance(fault, EmptyAnswerError):
        todo = "fill it in, or copy the data set anew: a benchmark is scored whole"
    elif copy is None:
        todo = (
            "go online (online=true, HF_HUB_OFFLINE unset), or bring a copy: where there is a network,"
            " run\n    "
            f"{copy_command(benchmark, 'DIR')}\n  and pass --suite-data DIR (or set suite.data=DIR)"
        )
    else:
        todo = (
            f"a copy must hold split `{benchmark.split}` of {benchmark.hub}, with the columns"
            f" {', '.join(columns_of(benchmark))}, and no rows of another split"
        )
    return UserError(fault.what, where, todo)


def columns_of(benchmark: Benchmark) -> list[str]:
    """The columns that a benchmark's data must have."""
    if benchmark.source in COLUMNS:
        return list(COLUMNS[benchmark.source][0])
    fields = benchmark.fields
    return [column for column in (fields.question, fields.answer, fields.id, fields.kind) if column]
