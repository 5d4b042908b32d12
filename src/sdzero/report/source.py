"""What the page is made from: the files of a run folder, read once; what is not there is None or empty."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from sdzero.compare_results import paired
from sdzero.errors import UserError
from sdzero.results import NAMES
from sdzero.run_dir import RunDir

REFERENCE = "sdzero"


@dataclass(frozen=True)
class RunFacts:
    """One run. `scores` are the files `evaluate/NAME.json`, with each question's rewards; `logs` the rows of
    `srt` (its last round) and `distill`, a row a step; `stages` what finished stages noted."""

    name: str
    folder: Path
    manifest: dict[str, Any]
    recipe_text: str
    recipe: dict[str, Any]
    results: dict[str, Any] | None
    scores: dict[str, dict[str, Any]]
    logs: dict[str, list[dict[str, Any]]]
    stages: dict[str, dict[str, Any]]
    tokens: list[dict[str, Any]]
    vocabulary: dict[str, str]
    localization: dict[str, Any] | None
    style: list[dict[str, Any]]
    plan: dict[str, Any] | None


@dataclass(frozen=True)
class Sources:
    """What one page shows. `pooled`: SD-Zero minus each model over all runs of one recipe, if that is what
    they are; `comparison` and `studies` are the JSON files of a comparison's folder."""

    runs: list[RunFacts]
    pooled: dict[str, Any] | None = None
    comparison: dict[str, Any] | None = None
    studies: list[dict[str, Any]] = field(default_factory=list)


def read_sources(folders: Sequence[Path], plan: Path | None = None) -> Sources:
    """Read run folders; a folder of several seeds, or of a comparison, stands for the runs in it.

    Raises UserError for a folder that is none of these, or twice the same, and for damaged files.
    """
    runs: list[RunFacts] = []
    comparison, studies, pooled = None, [], None
    for folder in folders:
        if (folder / "compare.json").is_file():
            if comparison is not None:
                raise UserError("a page has room for one comparison", str(folder), "make a page for each")
            comparison = _read_json(folder / "compare.json")
        studies += [_read_json(file) for file in sorted(folder.glob("study-*.json"))]
        seeds = _seed_folders(folder)
        if (folder / "manifest.json").is_file():
            runs.append(read_run(folder, _unique(folder.name, runs)))
        elif seeds:
            own = [read_run(seed, _unique(f"{folder.name}/{seed.name}", runs)) for seed in seeds]
            runs += own
            if len(folders) == 1:
                pooled = differences(own) or None
        else:
            raise UserError(
                "this is not a run's folder, nor one of several seeds or of a comparison",
                str(folder),
                "name a folder that `sdzero run` or `sdzero compare` wrote",
            )
    if plan is not None:
        if len(runs) != 1:
            raise UserError("a plan is for one run", str(plan), "name one run's folder")
        runs = [replace(runs[0], plan=_read_json(plan))]
    return Sources(runs, pooled, comparison, studies)


def read_run(folder: Path, name: str) -> RunFacts:
    """Read one run. Raises UserError for damaged files."""
    run = RunDir.unlocked(folder)

    def json_of(relative: str) -> Any:
        return run.read_json(relative) if run.path(relative).is_file() else None

    def rows_of(relative: str) -> list[Any]:
        return run.read_jsonl(relative) if run.path(relative).is_file() else []

    recipe_file = run.path("recipe.yaml")
    text = recipe_file.read_text(encoding="utf-8") if recipe_file.is_file() else ""
    recipe = yaml.safe_load(text) or {}
    srt_logs = sorted(folder.glob("srt/round-*/log.jsonl"))
    return RunFacts(
        name=name,
        folder=folder,
        manifest=run.manifest(),
        recipe_text=text,
        recipe=recipe if isinstance(recipe, dict) else {},
        results=json_of("results.json"),
        scores={
            model: run.read_json(f"evaluate/{model}.json")
            for model in NAMES
            if run.path(f"evaluate/{model}.json").is_file()
        },
        logs={
            "srt": rows_of(str(srt_logs[-1].relative_to(folder))) if srt_logs else [],
            "distill": rows_of("distill/log.jsonl"),
        },
        stages={
            str(file.relative_to(folder / "stages").with_suffix("")): _read_json(file)
            for file in sorted((folder / "stages").rglob("*.json"))
        },
        tokens=rows_of("report/tokens.jsonl"),
        vocabulary=json_of("report/vocabulary.json") or {},
        localization=json_of("report/localization.json"),
        style=json_of("report/style.json") or [],
        plan=_read_json(folder / "plan.json") if (folder / "plan.json").is_file() else None,
    )


def differences(runs: Sequence[RunFacts]) -> dict[str, Any]:
    """SD-Zero minus each model that every run scored, paired over distinct questions on means over runs."""
    shared = [name for name in NAMES if all(name in run.scores for run in runs)]
    if REFERENCE not in shared:
        return {}
    found = [{name: {"scores": run.scores[name]} for name in shared} for run in runs]
    return paired(shared, found, REFERENCE, reference_first=True)


def _seed_folders(folder: Path) -> list[Path]:
    seeds = [one for one in folder.glob("seed-*") if (one / "manifest.json").is_file()]
    return sorted(seeds, key=lambda one: (len(one.name), one.name))


def _unique(name: str, runs: Sequence[RunFacts]) -> str:
    known = {run.name for run in runs}
    number, own = 2, name
    while own in known:
        own, number = f"{name} ({number})", number + 1
    return own


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"this file cannot be read ({error})", str(file), "restore it from a copy") from error
    if not isinstance(found, dict):
        raise UserError("this file holds no JSON object", str(file), "restore it from a copy")
    return found
