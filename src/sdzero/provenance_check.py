"""`sdzero provenance FOLDER`: is the folder what its record says, and who signed it?"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from sdzero.checksums import find_all_damage, sha256_of
from sdzero.provenance import NAME, OWN, SIGNATURE, read_record, weights_of
from sdzero.signatures import verify

SCHEMA = 1
SHORT = 12
"""Digits of a hash that a person is shown."""


@dataclass(frozen=True)
class Result:
    """What was looked at, and what was found; `held` if it is as the record says."""

    what: str
    held: bool
    detail: str


def check_folder(folder: Path, allowed_signers: Path | None = None) -> tuple[dict[str, Any], list[Result]]:
    """The record, and what came of comparing it with the folder.

    With `allowed_signers` (a file as ssh-keygen takes it) the record must be signed by one of them. Raises
    UserError if there is no record that can be read.
    """
    record = read_record(folder)
    return record, [*_files(folder, record), *_recipe(record), *_signature(folder, allowed_signers)]


def _files(folder: Path, record: Mapping[str, Any]) -> Iterator[Result]:
    files = record["files"]
    damaged = find_all_damage(folder, files)
    for one in damaged:
        yield Result(str(one.file.relative_to(folder)), False, one.what)
    strangers = sorted(
        name
        for file in folder.rglob("*")
        if (file.is_symlink() or file.is_file())
        and (name := str(file.relative_to(folder))) not in files
        and name not in OWN
    )
    for name in strangers:
        yield Result(name, False, "it is not in the record")
    if record["chain"][-1]["weights"] != weights_of(files):
        yield Result(NAME, False, "the last of its chain has other weights than its files")
    if not damaged and not strangers:
        yield Result("files", True, f"{len(files)} files are as they were written")


def _recipe(record: Mapping[str, Any]) -> Iterator[Result]:
    if sha256_of(record["recipe"]) != record["recipe_sha256"]:
        yield Result("recipe", False, "the record's recipe has another hash than the record says")
        return
    yield Result("recipe", True, record["recipe_sha256"][:SHORT])


def _signature(folder: Path, allowed_signers: Path | None) -> Iterator[Result]:
    signed = (folder / SIGNATURE).is_file()
    if allowed_signers is None:
        detail = "signed, not checked (--allowed-signers)" if signed else "not signed"
        yield Result("signature", True, detail)
    elif not signed:
        yield Result("signature", False, f"there is no {SIGNATURE}")
    else:
        found = verify(folder / NAME, folder / SIGNATURE, allowed_signers)
        yield Result("signature", found.held, found.detail)


# ---- showing ----


def show_json(record: Mapping[str, Any], results: list[Result]) -> str:
    """For a script: `held`, what was looked at, and the record without its list of files."""
    held = all(result.held for result in results)
    known = {key: value for key, value in record.items() if key != "files"}
    checks = [asdict(result) for result in results]
    return json.dumps({"schema": SCHEMA, "held": held, "checks": checks, "record": known}, indent=2)


def show(record: Mapping[str, Any], results: list[Result], console: Console) -> None:
    """For a person: the chain down to the base model, then what held and what did not."""
    console.print("chain:")
    for place, link in enumerate(record["chain"]):
        named = link.get("model") or f"recipe {link['recipe_sha256'][:SHORT]}"
        arrow = "-> " if place else "   "
        console.print(
            Text(f"  {arrow}{link['stage']}: weights {link['weights'][:SHORT]}, {named}"), soft_wrap=True
        )
    data, code = record["data"], record["code"]
    counts = ", ".join(f"{name} {count:,}" for name, count in data["questions"].items())
    asked = data["questions_sha256"] or "not known"
    for name, text in (
        ("data", f"{data['path'] or data['source']}: {counts}; sha256 {asked[:SHORT]}"),
        ("code", f"sdzero {code['version']}, sha256 {code['sha256'][:SHORT]}"),
        ("seed", str(record["seeds"]["seed"])),
    ):
        console.print(Text(f"{name}: {text}"), soft_wrap=True)
    for result in results:
        state = Text("ok    ", "green") if result.held else Text("FAILED", "red")
        console.print(state + Text(f" {result.what}: {result.detail}"), soft_wrap=True)
