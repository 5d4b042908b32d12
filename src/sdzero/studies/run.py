"""Run a study over seeds beside a comparison's runs, and write `study-NAME.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from rich.table import Table

from sdzero.baselines.registry import BASELINES
from sdzero.compare_methods import SEARCH_FILE, Progress, chosen_settings, cost_of, with_seed
from sdzero.compare_results import COSTS, p_value, paired, percent
from sdzero.errors import UserError, unknown_name
from sdzero.evaluate.stats import interval_over_seeds
from sdzero.pipeline import Stages, open_run
from sdzero.recipe import Recipe
from sdzero.recipe_distill import DistillSettings
from sdzero.recipe_io import recipe_sha256
from sdzero.run_context import Report
from sdzero.run_dir import RunDir, package_versions
from sdzero.studies.ahead import AHEAD_STUDIES
from sdzero.studies.labels import LABEL_STUDIES
from sdzero.studies.looking import LOOKING_STUDIES
from sdzero.studies.options import OPTION_STUDIES
from sdzero.studies.phases import PHASE_STUDIES
from sdzero.studies.recommended import RECOMMENDED_STUDIES
from sdzero.studies.study import Chosen, Study
from sdzero.studies.thinking import THINKING_STUDY

SCHEMA = 1
ALL = (
    *PHASE_STUDIES,
    *LABEL_STUDIES,
    *LOOKING_STUDIES,
    *OPTION_STUDIES,
    *AHEAD_STUDIES,
    *RECOMMENDED_STUDIES,
    THINKING_STUDY,
)
STUDIES: dict[str, Study] = {study.name: study for study in ALL}


def study_named(name: str) -> Study:
    """The study of this name. Raises UserError for an unknown one."""
    if name not in STUDIES:
        raise unknown_name("study", name, STUDIES)
    return STUDIES[name]


def chosen_of(recipe: Recipe, folder: Path) -> Chosen:
    """The settings that the study's trainings share with a comparison in the same folder.

    Raises UserError if a comparison there has not finished its search.
    """
    if (folder / "search").exists() and not (folder / SEARCH_FILE).exists():
        raise UserError(
            "a comparison in this folder has not finished its search, and a study uses the rates it finds",
            str(folder),
            "run `sdzero compare` first, or choose another --output",
        )
    distill = cast("DistillSettings", chosen_settings(recipe, folder, "sdzero"))
    kinds = [kind for kind in BASELINES if getattr(recipe, kind) is not None]
    return Chosen(distill, {kind: chosen_settings(recipe, folder, kind) for kind in kinds})


def run_study(
    recipe: Recipe, folder: Path, study: Study, seeds: int, report: Report, progress: Progress
) -> dict[str, Any]:
    """Train and score what is missing, and write `study-NAME.json` into the folder; returns its content.

    The folder may be a comparison's: its runs are used, and phase 2's rate is the one found there.
    """
    if study.trains_srt and recipe.srt.checkpoint:
        raise UserError(
            f"the study `{study.name}` collects and trains SRT, and srt.checkpoint takes the place of both",
            "srt.checkpoint",
            "leave it out",
        )
    first = recipe.seed + study.first_seed
    numbers = list(range(first, first + seeds))
    chosen = chosen_of(recipe, folder)
    if study.prepare is not None:
        chosen = replace(chosen, prepared=study.prepare(recipe, folder, report, progress))
    found = []
    for seed in numbers:
        report(f"{study.name}, seed {seed}")
        with open_run(with_seed(recipe, seed), folder / f"seed-{seed}", report, progress) as stages:
            found.append(run_seed(stages, study, chosen))
    results = study_results(recipe, study, numbers, chosen.distill, found)
    RunDir.unlocked(folder).write_json(f"study-{study.name}.json", results)
    return results


def run_seed(stages: Stages, study: Study, chosen: Chosen) -> dict[str, Any]:
    """One seed's scores and costs by row, and what else the study measures."""
    study.check(stages)
    stages.phase_1()
    if study.trains_distill:
        stages.distill(settings=chosen.distill)
    rows = study.rows(stages, chosen)
    scored = {}
    for name, row in rows.items():
        is_own = name in ("base", "srt", "sdzero") and row.questions is None
        scored[name] = {
            "label": row.label,
            "scores": stages.evaluate(
                name if is_own or name == row_stage(row.model) else f"{study.name}-{name}",
                row.model,
                questions=row.questions,
            ),
        }
    spent = stages.ledger.by_stage()
    for name, row in rows.items():
        # In label-free mode the labels are part of what every training costs.
        scored[name]["cost"] = cost_of(("labels", *row.stages) if row.stages else (), spent)
    return {"rows": scored, "measured": study.measure(stages) if study.measure else {}}


def row_stage(model: str) -> str:
    """The stage whose model this is: a baseline's scores are those of the comparison."""
    return Path(model).parent.name


def study_results(
    recipe: Recipe,
    study: Study,
    seeds: Sequence[int],
    settings: DistillSettings,
    found: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The object of `study-NAME.json`: per row as in `compare.json`, differences to the reference row."""
    # A baseline may be missing in a seed that the comparison did not run.
    names = [name for name in found[0]["rows"] if all(name in one["rows"] for one in found)]
    rows: dict[str, Any] = {}
    for name in names:
        own = [one["rows"][name] for one in found]
        evaluations = [one["scores"]["evaluation"] for one in own]
        rows[name] = {
            "label": own[0]["label"],
            **spread([float(one["avg"]) for one in evaluations]),
            "pass_at_k": _mean([one["pass_at_k"] for one in evaluations]),
            "mean_tokens": _mean([one["mean_tokens"] for one in evaluations]),
            "questions": evaluations[0]["questions"],
            "revision": {
                key: _mean([one["scores"]["revision"][key] for one in own])
                for key in own[0]["scores"]["revision"]
            },
            **{key: _mean([one["cost"][key] for one in own]) for key in COSTS},
        }
    scores = [{name: one["rows"][name] for name in names} for one in found]
    return {
        "schema": SCHEMA,
        "study": study.name,
        "asks": study.asks,
        "family": recipe.name,
        "model": recipe.model.path,
        "seeds": list(seeds),
        "k": recipe.evaluate.k,
        "on": recipe.evaluate.on,
        "learning_rate": settings.learning_rate,
        "reference": study.reference,
        "rows": rows,
        "against_reference": paired(names, scores, study.reference, reference_first=False),
        "measured": {
            name: {"label": study.measured.get(name, name), **spread(known)}
            for name in found[0]["measured"]
            if (known := [one["measured"][name] for one in found if one["measured"][name] is not None])
        },
        "paper": dict(study.paper),
        "versions": package_versions(),
        "recipe_sha256": recipe_sha256(recipe),
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds, its 95% interval (None for one seed), and the values."""
    interval = interval_over_seeds(values)
    return {
        "mean": _mean(values),
        "interval": None if interval is None else list(interval),
        "per_seed": list(values),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ---- for people ----


def study_columns(results: Mapping[str, Any]) -> list[str]:
    """The heads of the table."""
    reference = results["rows"].get(results["reference"], {}).get("label", "")
    k = results["k"]
    heads = ["", f"avg@{k}", f"minus {reference}", "p", "tokens"]
    return [*heads, "first", "revised", "corrected", "spoilt", "responses"]


def study_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the table, a list a model."""
    cells = []
    for name, own in results["rows"].items():
        difference = results["against_reference"].get(name)
        cells.append(
            [
                own["label"],
                percent(own["mean"], own["interval"]),
                "" if difference is None else percent(difference["difference"], difference["interval"], "+"),
                "" if difference is None else p_value(difference["p"]),
                f"{own['mean_tokens']:.1f}",
                f"{own['revision']['first']:.1%}",
                f"{own['revision']['revised']:.1%}",
                f"{own['revision']['correction_rate']:.1%}",
                f"{own['revision']['regression_rate']:.1%}",
                f"{own['responses']:,.0f}",
            ]
        )
    return cells


def study_notes(results: Mapping[str, Any]) -> str:
    """What a reader must know beside the table."""
    return (
        f"{len(results['seeds'])} seeds, {results['on']} questions. Brackets after avg: 95% interval over"
        " seeds (none for one seed). Differences: row minus reference, paired over distinct questions on"
        " means over seeds, with a 95% interval over questions; p Holm-corrected over the rows. `first`,"
        " `revised`: accuracy of one response a question and of its one revision; `corrected`: of the wrong"
        " ones, how many are right after it; `spoilt`: of the right ones, how many are wrong."
    )


def measured_lines(results: Mapping[str, Any]) -> list[str]:
    """What was measured beside the scores, a line each."""
    lines = []
    for own in results["measured"].values():
        interval = own["interval"]
        shown = "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
        lines.append(f"{own['label']}: {own['mean']:.3f}{shown}")
    return lines


def paper_line(results: Mapping[str, Any]) -> str:
    """The paper's row for the same study."""
    if not results["paper"]:
        return "The paper has no such row."
    return "Paper: " + ", ".join(f"{label} {figure}" for label, figure in results["paper"].items()) + "."


def study_table(results: Mapping[str, Any]) -> Table:
    """The table of a study."""
    seeds = len(results["seeds"])
    title = f"{results['family']}, study {results['study']}, {seeds} seeds: {results['asks']}"
    table = Table(title=title, title_justify="left")
    for column in study_columns(results):
        table.add_column(column, justify="right" if column else "left")
    for cells in study_rows(results):
        table.add_row(*cells)
    return table
