"""The files of a bundle while it is made: copied whole or not at all, and not twice.

A file gets its final name when it is whole, and is then noted in a journal with its sum. A bundle that was
interrupted goes on from there: what is in the journal and still has its sum is not fetched or copied again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sdzero.checksums import read_sum
from sdzero.errors import UserError

CHUNK = 1 << 20
COPYING = ".copying"
"""Ends the name of a file that is not whole yet."""
LEFT_OUT = (".git", ".cache", "__pycache__", ".DS_Store")
"""Files and folders that are nobody's data."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack", "*.onnx", "*.gguf")
"""Of a model, formats that are not read here; the first ones run code when they are read."""
PATTERNS_OF_HUB = {"model": PICKLED, "dataset": ("*.py", "*.pkl", "*.pickle", "*.pt")}

HubFetch = Callable[[str, str, Path], None]
"""(hub id, `model` or `dataset`, the folder to fill)."""


class Journal:
    """What was finished in a bundle's folder. Paths are relative to it."""

    def __init__(self, root: Path, file: Path) -> None:
        self._root, self._file = root, file
        self._rows: dict[str, dict[str, Any]] = {}
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:  # the last one of a process that was killed
                    continue
                self._rows[row["path"]] = row

    def holds(self, file: Path, source: Path | None = None) -> bool:
        """Whether the file is as it was noted, and its source, if it has one, is as it was copied."""
        row = self._rows.get(str(file.relative_to(self._root)))
        if row is None or not file.is_file() or file.stat().st_size != row["bytes"]:
            return False
        if source is not None and row.get("source") != _state_of(source) and row["sha256"] != sum_of(source):
            return False
        return sum_of(file) == str(row["sha256"])

    def note(self, file: Path, source: Path | None = None, sha256: str | None = None) -> None:
        """Note a file that is whole; `sha256` if it is known already."""
        path = str(file.relative_to(self._root))
        row = {"path": path, "bytes": file.stat().st_size, "sha256": sha256 or sum_of(file)}
        if source is not None:
            row["source"] = _state_of(source)
        self._rows[path] = row
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")


def _state_of(file: Path) -> list[int]:
    return [file.stat().st_size, file.stat().st_mtime_ns]


def sum_of(file: Path) -> str:
    """The SHA-256 of a file, in hex."""
    return str(read_sum(file)["sha256"])


def copy_file(source: Path, to: Path, journal: Journal) -> None:
    """Copy what a file holds, links followed. Raises UserError for a name that no list of sums can hold."""
    check_name(to.name, source)
    if journal.holds(to, source):
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    beside = to.with_name(f".{to.name}{COPYING}")
    digest = hashlib.sha256()
    with source.open("rb") as reads, beside.open("wb") as writes:
        while chunk := reads.read(CHUNK):
            digest.update(chunk)
            writes.write(chunk)
        writes.flush()
        os.fsync(writes.fileno())
    os.replace(beside, to)
    journal.note(to, source, digest.hexdigest())


def copy_any(source: Path, to: Path, journal: Journal, is_model: bool = False) -> list[str]:
    """Copy a file, or a folder with all that is below; gives the names that were left out.

    Of a model no pickled weights come along. Raises UserError if it has no other ones.
    """
    copies = copies_of(source, to, is_model)
    for copy, file in copies.items():
        copy_file(file, copy, journal)
    for stale in files_below(to) if to.is_dir() else ():
        if stale not in copies:
            stale.unlink()
    if is_model:
        check_model(to, source)
    taken = set(copies.values())
    return (
        []
        if source.is_file()
        else [str(file.relative_to(source)) for file in files_below(source) if file not in taken]
    )


def copies_of(source: Path, to: Path, is_model: bool) -> dict[Path, Path]:
    """The files that come along, by where they go."""
    if source.is_file():
        return {to: source}
    return {
        to / file.relative_to(source): file
        for file in files_below(source)
        if not (is_model and any(file.match(pattern) for pattern in PICKLED))
    }


def files_below(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those in it, links to files included, in order."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT)
        yield from (Path(place) / name for name in sorted(names) if name not in LEFT_OUT)


def check_model(folder: Path, named: Path | str) -> None:
    """Raise UserError if a model's folder has no weights in safetensors, or is an adapter."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            "the model is an adapter, which names its base model by a path of this machine",
            str(named),
            "write the whole model with `sdzero export RUN --to FOLDER`, and name that folder",
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            "the model has no weights in safetensors",
            str(named),
            "convert them: load the model with transformers where you trust it, and save_pretrained it",
        )


def check_name(name: str, where: Path | str) -> None:
    """Raise UserError for a file's name that a line of a list cannot hold."""
    if any(character in name for character in "\n\r\\"):
        raise UserError("a file's name holds a line break or a backslash", repr(str(where)), "rename it")


def fetch_from_hub(hub_id: str, kind: str, folder: Path) -> None:
    """Download a model's or a data set's files; what is there already is not fetched again.

    Raises UserError if the hub cannot be reached or has no such thing.
    """
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            hub_id, repo_type=kind, local_dir=folder, ignore_patterns=list(PATTERNS_OF_HUB[kind])
        )
    # The client raises errors of its own, of its transport and of the system.
    except Exception as fault:
        first_line = (str(fault).strip() or type(fault).__name__).splitlines()[0]
        raise UserError(
            f"the {kind} {hub_id} cannot be fetched from the hub: {first_line}",
            hub_id,
            "go online (HF_HUB_OFFLINE unset), log in if it is gated (hf auth login), or download it by other"
            " means and name the folder in the recipe",
        ) from fault
    shutil.rmtree(folder / ".cache", ignore_errors=True)
