"""SHA-256 of a folder's files: taken when the folder is whole, looked at before it is used again; and of
JSON-like data."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READERS = 4
"""Files that are read at the same time."""

Sums = dict[str, dict[str, Any]]
"""By a file's path inside the folder: `bytes`, its size, and `sha256`."""


@dataclass(frozen=True)
class Damage:
    """A file that is not what was written, and how that shows."""

    file: Path
    what: str


def take_sums(folder: Path) -> Sums:
    """The sums of all files in the folder and below, after what they hold is on the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(READERS) as readers:
        rows = list(readers.map(_sum_of, files))
    for place in {folder, *(file.parent for file in files)}:
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return {str(file.relative_to(folder)): row for file, row in zip(files, rows, strict=True)}


def find_damage(folder: Path, sums: Mapping[str, Mapping[str, Any]]) -> Damage | None:
    """The first file that is missing, cut short or changed; None if all are as written. Files that have no
    sum do not matter."""
    for name, expected in sums.items():
        try:
            size = (folder / name).stat().st_size
        except FileNotFoundError:
            return Damage(folder / name, "it is missing")
        if size != expected["bytes"]:
            how = "cut short" if size < expected["bytes"] else "too long"
            return Damage(folder / name, f"it is {how}: {size:,} of {expected['bytes']:,} bytes")
    with ThreadPoolExecutor(READERS) as readers:
        rows = list(readers.map(_sum_of, [folder / name for name in sums]))
    for (name, expected), row in zip(sums.items(), rows, strict=True):
        if row["sha256"] != expected["sha256"]:
            return Damage(folder / name, "its content has changed since it was written (SHA-256)")
    return None


def find_all_damage(folder: Path, sums: Mapping[str, Mapping[str, Any]]) -> list[Damage]:
    """Every file that is missing, of another length, changed or not to be read, in the order of the sums.

    A name that leads out of the folder is damage too, and is not followed.
    """
    found: dict[str, Damage] = {}
    for name, expected in sums.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            found[name] = Damage(folder / name, "its name leads out of the folder")
            continue
        try:
            one = find_damage(folder, {name: expected})
        except OSError as error:
            one = Damage(folder / name, f"it cannot be read ({error.strerror})")
        if one is not None:
            found[name] = one
    return list(found.values())


def read_sum(file: Path) -> dict[str, Any]:
    """The row of a file in `Sums`, as it can be read now."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return {"bytes": opened.tell(), "sha256": digest}


def sha256_of(data: Any) -> str:
    """SHA-256, in hex, of JSON-like data with sorted keys and no blanks."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _sum_of(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    return read_sum(file)
