"""The rows of a data file, JSONL, CSV or parquet, for a first look. Imports no torch."""

import csv
from pathlib import Path
from typing import Any

from sdzero.errors import UserError
from sdzero.questions.sources import json_rows
from sdzero.recipe import FieldMap

FORMATS = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
SOURCES = {"jsonl": "jsonl", "csv": "huggingface", "parquet": "huggingface"}
"""The recipe's `data.source` that reads each format."""


def format_of(file: Path) -> str:
    """The format of a file, by its name. Raises UserError for a file that is not there or is another kind."""
    if not file.is_file():
        raise UserError(
            "this is a folder" if file.is_dir() else "there is no such file",
            str(file),
            "name one JSONL, CSV or parquet file",
        )
    known = FORMATS.get(file.suffix.lower())
    if known is None:
        raise UserError(
            f"a file that ends in `{file.suffix}` cannot be looked at",
            str(file),
            f"use one of {', '.join(FORMATS)}: JSONL has one JSON object a line",
        )
    return known


def read_rows(file: Path) -> list[dict[str, Any]]:
    """All rows. Raises UserError for a file that cannot be read, or has none."""
    kind = format_of(file)
    if kind == "jsonl":
        rows = [dict(row) for _, _, row in json_rows(file, FieldMap())]
    elif kind == "csv":
        rows = _csv_rows(file)
    else:
        rows = _parquet_rows(file)
    if not rows:
        raise UserError("there is no row in the data", str(file), "check the file's content")
    return rows


def _csv_rows(file: Path) -> list[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = list(csv.DictReader(opened, strict=True))
    except UnicodeDecodeError as error:
        raise UserError(
            f"the file is not UTF-8 (byte {error.start})", str(file), "save it as UTF-8"
        ) from None
    except csv.Error as error:
        raise UserError(f"the file is not well-formed CSV: {error}", str(file), "mend it") from None
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise UserError(
                "a row has another number of columns than the first line",
                f"{file}: row {number}",
                "put texts with commas or line ends into quotes",
            )
    return [dict(row) for row in rows]


def _parquet_rows(file: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"the file is not parquet: {error}", str(file), "write it again") from None
    return rows
