"""The records of a run's models: written when a stage keeps its model, completed when the run was scored.

A record that is there is not made anew: code, libraries and data are those that the stage was trained with.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdzero import ranks
from sdzero.checksums import Sums, take_sums
from sdzero.provenance import (
    NAME,
    OWN,
    data_files,
    data_of,
    make_provenance,
    parent_of,
    read_record,
    record_text,
    sums_of,
)
from sdzero.recipe import Recipe
from sdzero.run_dir import RunDir

if TYPE_CHECKING:
    from sdzero.run_context import RunContext


CARD = "README.md"


def note_model(context: "RunContext", stage: str, parent: str | Path, sums: Sums) -> None:
    """Write the record of a model that a stage has just saved; `sums` are those of its files."""

    def make() -> str:
        known = context.provenance_parts
        if "files" not in known:
            known["files"] = data_files(context.recipe)
        if str(parent) not in known:
            known[str(parent)] = parent_of(context.run, str(parent))
        return record_text(
            make_provenance(
                context.run,
                context.recipe,
                stage,
                known[str(parent)],
                data_of(context.recipe, vars(context.sets), known["files"]),
                context.ledger.budget_json(),
                sums,
            )
        )

    context.run.write_text(f"{stage}/model/{NAME}", ranks.from_first(make))


def complete_record(context: "RunContext", stage: str) -> None:
    """Put the run's results, its ledger and files that came since (the model card) into a stage's record.

    The sums of the model's own files stay those of the stage's marker. Nothing is done where there is no
    record: models of earlier versions have none.
    """
    folder = context.run.path(stage, "model")

    def make() -> str | None:
        if not (folder / NAME).is_file():
            return None
        record, results = read_record(folder), context.run.read_json("results.json")
        before = record["results"] or {}
        if before.get("evaluations") == results["evaluations"] and CARD in record["files"]:
            return None  # it stays as it is, and with it a signature
        came = [file for file in sorted(folder.iterdir()) if file.is_file() and file.name not in OWN]
        since = sums_of(
            [file for file in came if file.name not in record["files"] or file.name == CARD], folder
        )
        record |= {
            "results": results,
            "ledger": context.ledger.budget_json(),
            "files": {**record["files"], **since},
        }
        return record_text(record)

    text = ranks.from_first(make)
    if text is not None:
        context.run.write_text(f"{stage}/model/{NAME}", text)


def note_export(folder: Path, run: RunDir, recipe: Recipe, source: Path) -> None:
    """Write the record of an exported folder, whole but for it. `source` is the run's model that it is from.

    Of a run of an earlier version, whose models have no record, the chain begins at the run's model.
    """
    kept: Mapping[str, Any] = read_record(source) if (source / NAME).is_file() else {}
    sets = run.read_json("questions.json")
    unknown = {
        "source": recipe.data.source,
        "path": recipe.data.path,
        "files": {},
        "questions": {name: len(ids) for name, ids in sets.items()},
        "questions_sha256": None,
    }
    record = make_provenance(
        run,
        recipe,
        "export",
        parent_of(run, str(source)),
        kept.get("data", unknown),
        kept.get("ledger", {}),
        take_sums(folder),
    )
    (folder / NAME).write_text(record_text(record), encoding="utf-8")
