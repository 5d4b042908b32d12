"""A run's folder: atomic writes, a manifest, what is done, and one run at a time.

A file that has its final name is whole: it was written beside, flushed to the disk and renamed. A process
may be killed at any instant; the next one finds either the old file or the new one.

Of a run's several processes (`sdzero.ranks`) the first holds the folder and writes. The others call the same
methods at the same places, which wait for the first to have written; appending to a log waits for nobody.
"""

import itertools
import json
import math
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from sdzero import ranks
from sdzero.errors import UserError
from sdzero.recipe import Recipe
from sdzero.recipe_io import differing_keys, dump_recipe, load_recipe, recipe_sha256
from sdzero.run_lock import LOCK_NAME, release_lock, take_lock

SCHEMA = 1
TEMPORARY_SUFFIX = ".sdzero-tmp"
MANIFEST_NAME, RECIPE_NAME = "manifest.json", "recipe.yaml"
PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "sdzero")
MAY_CHANGE = (
    *("sft", "grpo", "sdft", "negative", "compare", "cost", "alarms", "suite", "report"),
    *("online", "report_to"),
)
"""Sections that a run folder does not hold fast: baselines' stages, and scores on benchmarks, keep and check
the settings that they were made with; alarms stop a training or leave it as it is, and so does `online`;
prices change nothing, trackers and the report only look on."""
SHOWN_DIFFERENCES = 20

_temporary_numbers = itertools.count()


def package_versions() -> dict[str, str | None]:
    """Versions of Python and the packages that decide a run's numbers; None where not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


class RunDir:
    """An open run folder, held by this process alone until `close`, or the process's death."""

    def __init__(self, root: Path, lock_descriptor: int | None) -> None:
        """Use `RunDir.open` or `RunDir.unlocked`."""
        self.root = root
        self._lock_descriptor: int | None = lock_descriptor

    @classmethod
    def open(cls, path: Path | str, recipe: Recipe) -> Self:
        """Make the folder for this recipe, or resume it where it exists with the same recipe.

        Raises:
            UserError: the folder cannot be written, holds other things than a run, belongs to a
                different recipe (the differing keys are listed), or is open in another process.
        """
        with ranks.turn_of_first() as is_mine:
            return cls._hold(Path(path), recipe) if is_mine else cls.unlocked(path)

    @classmethod
    def _hold(cls, root: Path, recipe: Recipe) -> Self:
        try:
            _refuse_foreign_folder(root)
            _make_folder(root)
            run = cls(root, take_lock(root))
        except OSError as error:
            raise UserError(
                f"the run folder cannot be written ({error.strerror})", str(root), "choose another folder"
            ) from error
        try:
            run._clean_temporary_files()
            run._create_or_check(recipe)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def unlocked(cls, path: Path | str) -> Self:
        """The folder without holding it: to read a run, or to write beside runs (a summary)."""
        return cls(Path(path), None)

    def close(self) -> None:
        """Give the folder up to other processes. May be called again."""
        if self._lock_descriptor is not None:
            release_lock(self._lock_descriptor)
            self._lock_descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def path(self, *parts: str) -> Path:
        """A path inside the folder; nothing is made."""
        return self.root.joinpath(*parts)

    @contextmanager
    def replacing(self, relative: str) -> Iterator[Path]:
        """Give a path to write a file at; when the block ends well, the file is made durable and named
        `relative`, in place of an older one. When it ends with an error, the older one stays. For the first
        process alone: it waits for no other.

        Raises:
            UserError: the file cannot be written.
        """
        final = self.path(relative)
        number = f"{os.getpid()}-{next(_temporary_numbers)}"
        beside = final.with_name(f".{final.name}.{number}{TEMPORARY_SUFFIX}")
        try:
            _make_folder(final.parent)
            yield beside
            _sync(beside)
            os.replace(beside, final)
            _sync(final.parent)
        except OSError as error:
            raise _unwritable(final, error) from error
        finally:
            if beside.exists():
                beside.unlink()

    def write_text(self, relative: str, text: str) -> None:
        """Write a text file, atomically, in UTF-8 with the line ends given."""
        with ranks.turn_of_first() as is_mine:
            if is_mine:
                self._write_text(relative, text)

    def _write_text(self, relative: str, text: str) -> None:
        with self.replacing(relative) as beside:
            beside.write_bytes(text.encode())

    def write_json(self, relative: str, data: Any) -> None:
        """Write a JSON file, atomically. NaN and infinities are not JSON: they raise ValueError."""
        self.write_text(relative, _json_text(data))

    def write_jsonl(self, relative: str, rows: Iterable[Any]) -> None:
        """Write one JSON value a line, atomically."""
        with ranks.turn_of_first() as is_mine:
            if is_mine:
                self._write_jsonl(relative, rows)

    def _write_jsonl(self, relative: str, rows: Iterable[Any]) -> None:
        with self.replacing(relative) as beside, beside.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

    def append_jsonl(self, relative: str, row: dict[str, Any]) -> None:
        """Append a line to a log. Not flushed to the disk: a power cut may lose the last lines, and what a
        killed process left half-written is cut off here. NaN and infinities stand as the texts "nan", "inf".
        Only the first process writes, and none waits: do not read it in the same run.

        Raises:
            UserError: the file cannot be written.
        """
        if not ranks.is_first():
            return
        file = self.path(relative)
        finite = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        line = json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            _make_folder(file.parent)
            with file.open("a+b") as log:
                _cut_torn_end(log)
                log.write(line.encode())
        except OSError as error:
            raise _unwritable(file, error) from error

    def remove_folders(self, relative: str, pattern: str) -> None:
        """Remove the folders directly under `relative` whose names match the glob `pattern`."""
        with ranks.turn_of_first() as is_mine:
            if is_mine:
                self._remove_folders(relative, pattern)

    def _remove_folders(self, relative: str, pattern: str) -> None:
        try:
            for folder in self.path(relative).glob(pattern):
                if folder.is_dir() and not folder.is_symlink():
                    shutil.rmtree(folder)
        except OSError as error:
            raise _unwritable(self.path(relative), error) from error

    def read_json(self, relative: str) -> Any:
        """Read a JSON file.

        Raises:
            UserError: the file is missing or damaged.
        """
        return _parse(self._read(relative), self.path(relative), line_offset=0)

    def read_jsonl(self, relative: str, todo: str | None = None) -> list[Any]:
        """Read a file of one JSON value a line. `todo`: what else than usual to do about a damaged one.

        Raises:
            UserError: the file is missing, damaged, or cut short within a line.
        """
        try:
            *lines, rest = self._read(relative).split("\n")
            file = self.path(relative)
            if rest:
                raise _damaged(file, f"line {len(lines) + 1}", "it ends within a line")
            return [_parse(line, file, line_offset=number) for number, line in enumerate(lines)]
        except UserError as error:
            error.todo = todo or error.todo
            raise

    def manifest(self) -> dict[str, Any]:
        """What the run was started with: schema, recipe hash, date, versions, seed."""
        manifest = self.read_json(MANIFEST_NAME)
        if not isinstance(manifest, dict):
            raise _damaged(self.path(MANIFEST_NAME), None, "it is no JSON object")
        return manifest

    def is_done(self, stage: str) -> bool:
        """Whether the stage has been marked as done."""
        return self.path(_marker(stage)).exists()

    def mark_done(
        self, stage: str, info: dict[str, Any] | None = None, model: dict[str, Any] | None = None
    ) -> None:
        """Mark a stage as done, with what later stages or people want to know of it, and the sums of its
        model's files, if it leaves one (`sdzero.kept_models`).

        Call it last: all that the stage wrote must be durable by then.
        """
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        marker = {"stage": stage, "finished": finished, "info": info or {}}
        self.write_json(_marker(stage), marker if model is None else marker | {"model": model})

    def stage_info(self, stage: str) -> dict[str, Any]:
        """The `info` that the stage was marked done with.

        Raises:
            UserError: the stage is not done, or its marker is damaged.
        """
        info: dict[str, Any] = self._stage_marker(stage)["info"]
        return info

    def model_sums(self, stage: str) -> dict[str, Any] | None:
        """The sums of the files of the stage's model; None if the stage was marked without any.

        Raises:
            UserError: the stage is not done, or its marker is damaged.
        """
        sums: dict[str, Any] | None = self._stage_marker(stage).get("model")
        return sums

    def _stage_marker(self, stage: str) -> dict[str, Any]:
        marker = self.read_json(_marker(stage))
        if not isinstance(marker, dict) or not isinstance(marker.get("info"), dict):
            raise _damaged(self.path(_marker(stage)), None, "it is no stage marker")
        return marker

    def _read(self, relative: str) -> str:
        file = self.path(relative)
        try:
            return file.read_bytes().decode("utf-8")
        except FileNotFoundError:
            raise UserError(
                "a file of the run is missing", str(file), "resume the run, or start it in a new folder"
            ) from None
        except UnicodeDecodeError:
            raise _damaged(file, None, "it is not UTF-8 text") from None
        except OSError as error:
            raise UserError(
                f"a file of the run cannot be read ({error.strerror})", str(file), "check its permissions"
            ) from error

    def _clean_temporary_files(self) -> None:
        """Remove what a killed process left; nobody else writes here while the lock is held."""
        for leftover in self.root.rglob(f".*{TEMPORARY_SUFFIX}"):
            leftover.unlink(missing_ok=True)

    def _create_or_check(self, recipe: Recipe) -> None:
        sha256 = recipe_sha256(recipe)
        # The manifest comes first: from then on the folder is a run, and a missing recipe is written again.
        if not self.path(MANIFEST_NAME).exists():
            created = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = {
                "schema": SCHEMA,
                "recipe_sha256": sha256,
                "created": created,
                "versions": package_versions(),
                "seed": recipe.seed,
            }
            self._write_text(MANIFEST_NAME, _json_text(manifest))
        manifest = self.manifest()
        if manifest.get("schema") != SCHEMA:
            raise UserError(
                f"the run folder has schema {manifest.get('schema')!r}; this version reads {SCHEMA}",
                str(self.path(MANIFEST_NAME)),
                "use the version of sdzero that made it, or choose a new folder",
            )
        if manifest.get("recipe_sha256") != sha256:
            self._refuse_different_recipe(recipe)
        if not self.path(RECIPE_NAME).exists():
            self._write_text(RECIPE_NAME, dump_recipe(recipe))

    def _refuse_different_recipe(self, recipe: Recipe) -> None:
        """Raise UserError unless only what stages guard themselves differs, or keys that are new here.

        A baseline's section may come later or change: its stage keeps the settings it was trained with.
        """
        stored = self.path(RECIPE_NAME)
        todo = "use the folder's own recipe to resume it, or choose a new folder"
        if not stored.exists():
            raise UserError("the folder holds a run of a different recipe", str(self.root), todo)
        differences = [
            line
            for line in differing_keys(load_recipe(stored), recipe)
            if re.split(r"[.:]", line)[0] not in MAY_CHANGE
        ]
        if not differences:
            return
        shown = differences[:SHOWN_DIFFERENCES]
        if len(differences) > len(shown):
            shown.append(f"and {len(differences) - len(shown)} more")
        listed = "".join(f"\n  - {line}" for line in shown)
        raise UserError(f"the folder holds a run of a different recipe:{listed}", str(self.root), todo)


def recipe_of_run(folder: Path) -> Recipe:
    """The recipe that a run's folder keeps. Raises UserError if the folder is not a run's."""
    if not (folder / RECIPE_NAME).is_file():
        raise UserError(
            f"this is not a run's folder (it has no {RECIPE_NAME})", str(folder), "name a run's folder"
        )
    return load_recipe(folder / RECIPE_NAME)


def _json_text(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _cut_torn_end(file: BinaryIO) -> None:
    """Cut an open file back to the end of its last whole line."""
    end = file.seek(0, os.SEEK_END)
    start = end
    while start:
        file.seek(start - 1)
        if file.read(1) == b"\n":
            break
        start -= 1
    if start < end:
        file.truncate(start)


def _unwritable(file: Path, error: OSError) -> UserError:
    return UserError(
        f"a file of the run cannot be written ({error.strerror or error})",
        str(file),
        "check the disk's free space and the permissions; then resume the run",
    )


def _marker(stage: str) -> str:
    name = r"[A-Za-z0-9][A-Za-z0-9._@-]*"
    if not re.fullmatch(rf"{name}(?:/{name})*", stage):
        raise ValueError(f"not a stage name: {stage!r}")
    return f"stages/{stage}.json"


def _refuse_foreign_folder(root: Path) -> None:
    """A folder with anything in it must be a run; what a process killed at its start left is nothing."""
    if not root.exists() or root.joinpath(MANIFEST_NAME).exists():
        return
    strangers = sorted(
        entry.name
        for entry in root.iterdir()
        if entry.name != LOCK_NAME and not entry.name.endswith(TEMPORARY_SUFFIX)
    )
    if strangers:
        shown = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
        raise UserError(
            f"the folder is not empty and is not a run (it holds {shown})",
            str(root),
            "choose a new or empty folder",
        )


def _make_folder(folder: Path) -> None:
    """Make a folder and the ones above it, and make their names durable."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _sync(made.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parse(text: str, file: Path, line_offset: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _damaged(file, f"line {line_offset + error.lineno}", error.msg) from None


def _damaged(file: Path, line: str | None, problem: str) -> UserError:
    return UserError(
        f"a file of the run is damaged: {problem}",
        f"{file}: {line}" if line else str(file),
        "restore it from a copy, or start the run in a new folder",
    )
