"""Is a bundle as it was made? Its list of sums, written last, and what does not agree with it.

The list is in the form of `sha256sum`, so that the other side needs nothing of ours to check it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdzero.checksums import take_sums
from sdzero.errors import UserError
from sdzero.onprem.bundle_files import check_name, files_below, sum_of

SUMS_NAME = "SHA256SUMS"
FACTS_NAME = "bundle.json"
SCHEMA = 1
MADE_THERE = ("venv", "runs")
"""Folders of a bundle that install.sh and runs make: they are no part of it."""


@dataclass(frozen=True)
class Fault:
    """A file that is not as it was made: `wrong`, `missing` or `extra`."""

    path: str
    kind: str


def write_sums(folder: Path, without: str | None = None) -> str:
    """Write the list of all files, less those of the folder `without`; gives its own SHA-256, by which the
    whole bundle is known."""
    (folder / SUMS_NAME).unlink(missing_ok=True)
    taken = take_sums(folder)
    sums = {path: row for path, row in taken.items() if Path(path).parts[0] != without}
    for path in sums:
        check_name(path, folder / path)
    lines = [f"{row['sha256']}  {path}\n" for path, row in sorted(sums.items())]
    (folder / SUMS_NAME).write_text("".join(lines), encoding="utf-8")
    return sum_of(folder / SUMS_NAME)


def read_sums(folder: Path) -> dict[str, str]:
    """The sum of each file, by its path in the folder. Raises UserError for a list that is missing or broken,
    and for a path that leads out of the folder."""
    file = folder / SUMS_NAME
    if not file.is_file():
        raise UserError(
            f"this is no bundle: it has no {SUMS_NAME}", str(folder), "name the folder of a bundle"
        )
    try:
        # Not `splitlines`: names may hold what Unicode calls the end of a line.
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"the list of sums is damaged ({error})", str(file), "copy the bundle again"
        ) from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        row = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if row is None or row[2].startswith("/") or ".." in Path(row[2]).parts:
            raise UserError("the list of sums is damaged", f"{file}:{number}", "copy the bundle again")
        found[row[2]] = row[1]
    return found


def find_faults(folder: Path) -> list[Fault]:
    """Every file that is wrong or missing, and every one that the list does not have. Raises UserError for
    one that cannot be read."""
    sums = read_sums(folder)
    faults, listed = [], {SUMS_NAME, *sums}
    for path, sha256 in sums.items():
        file = folder / path
        if file.is_symlink() or not file.is_file():
            faults.append(Fault(path, "wrong" if file.is_symlink() or file.exists() else "missing"))
        elif _sum_of(file) != sha256:
            faults.append(Fault(path, "wrong"))
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        is_known = relative.parts[0] in MADE_THERE or str(relative) in listed
        if not is_known and (file.is_symlink() or not file.is_dir()):
            faults.append(Fault(str(relative), "extra"))
    return faults


def _sum_of(file: Path) -> str:
    try:
        return sum_of(file)
    except OSError as error:
        raise UserError(
            f"a file of the bundle cannot be read ({error.strerror})", str(file), "check its permissions"
        ) from error


def read_facts(folder: Path) -> dict[str, Any]:
    """What the bundle says of itself. Raises UserError if it cannot be read, or is of a later version."""
    file = folder / FACTS_NAME
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        schema = facts["schema"]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise UserError(
            f"the facts of the bundle cannot be read ({fault})", str(file), "copy the bundle again"
        ) from fault
    if schema != SCHEMA:
        raise UserError(
            f"the bundle has schema {schema!r}; this version reads {SCHEMA}", str(file), "use its own sdzero"
        )
    return dict(facts)


def as_json(folder: Path, faults: Sequence[Fault]) -> str:
    """What was found, for a script."""
    found: Mapping[str, Any] = {
        "schema": SCHEMA,
        "whole": not faults,
        "files": len(read_sums(folder)),
        "sha256": sum_of(folder / SUMS_NAME),
        "faults": [asdict(fault) for fault in faults],
    }
    return json.dumps(found, indent=2)


def bytes_below(folder: Path) -> int:
    """The size of all files of a folder."""
    return sum(file.stat().st_size for file in files_below(folder))
