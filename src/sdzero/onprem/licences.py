"""Licences of what is in a bundle: a table, and the texts that the wheels bring along.

What a wheel says of itself is told, and not judged: the expression (PEP 639), else the field, else the
classifiers.
"""

import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sdzero.model_card import license_of
from sdzero.onprem.wheel_metadata import Wheel

FOLDER = "licences"
NOT_STATED = "not stated"
LONGEST_FIELD = 100
"""The old field `License` may hold a whole text, which is no name."""

_TEXT = re.compile(
    r"[^/]+\.dist-info/(?:licenses/.+|(?:[^/]*/)?(?:LICEN[CS]E|COPYING|NOTICE|COPYRIGHT)[^/]*)", re.I
)


def licence_of(wheel: Wheel) -> str:
    """What the wheel's metadata gives as its licence."""
    found = wheel.metadata
    if expression := found.get("license_expression"):
        return expression
    if (field := found.get("license", "").strip()) and "\n" not in field and len(field) <= LONGEST_FIELD:
        return field
    classifiers = [
        line.rpartition(" :: ")[2] for line in found.get("classifiers", []) if line.startswith("License ::")
    ]
    return "; ".join(classifiers) or NOT_STATED


def licence_of_model(folder: Path) -> str:
    """What a model folder's card gives as its licence."""
    found = license_of(folder)
    return NOT_STATED if found is None else found


def write_licences(bundle: Path, wheels: Sequence[Wheel], models: Sequence[Path]) -> None:
    """Write the folder with the table and the texts, anew."""
    folder = bundle / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rows = []
    for wheel in wheels:
        own = f"{wheel.name}-{wheel.version}"
        count = _write_texts(wheel, folder / own)
        texts = f"[{count}]({own})" if count else "none in its wheel"
        rows.append(f"| {wheel.name} | {wheel.version} | {_cell(licence_of(wheel))} | {texts} |")
    lines = [
        "# Licences",
        "",
        "What each package says of itself in the metadata of its wheel; the texts are those in the wheel.",
        "",
        "| package | version | licence | texts |",
        "|---|---|---|---|",
        *rows,
    ]
    if models:
        lines += ["", "| model | licence, by its card |", "|---|---|"]
        lines += [f"| {one.relative_to(bundle)} | {_cell(licence_of_model(one))} |" for one in models]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _write_texts(wheel: Wheel, folder: Path) -> int:
    count = 0
    with zipfile.ZipFile(wheel.file) as content:
        for name in content.namelist():
            inner = PurePosixPath(name)
            if name.endswith("/") or not _TEXT.fullmatch(name) or ".." in inner.parts:
                continue
            to = folder.joinpath(*inner.parts[1:])
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(content.read(name))
            count += 1
    return count
