"""The page: what was read, put into the templates. One file, no network: style, script and data stand in it.

The page's own content policy allows nothing to be loaded, and only the one style and the one script whose
hashes it names, so that what a model wrote cannot run even if it were not escaped.
"""

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sdzero import __version__
from sdzero.errors import UserError
from sdzero.report.charts import Chart
from sdzero.report.curves import concentration_chart, learning_charts
from sdzero.report.flows import Flow, flow, mean_revision
from sdzero.report.source import RunFacts, Sources, read_sources
from sdzero.report.spent import cost, energy, planned_rows, stage_rows
from sdzero.report.tables import Table, comparison_table, difference_table, score_tables, study_table
from sdzero.report.token_data import script_json, token_data
from sdzero.report.verdict import verdict_of
from sdzero.results import NAMES

STAGE_HEADS = [
    "stage",
    "responses",
    "sampled tokens",
    "trained tokens",
    "read by the teacher",
    "time",
    "energy",
]


def write_report(folders: Sequence[Path], output: Path, plan: Path | None = None) -> int:
    """Write the page of these folders to `output`; gives its size in bytes.

    Raises UserError for folders that are no runs, and where the page cannot be written.
    """
    data = page(read_sources(folders, plan)).encode("utf-8")
    beside = output.with_name(f".{output.name}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        beside.replace(output)
    except OSError as error:
        raise UserError(
            f"the page cannot be written ({error.strerror or error})",
            str(output),
            "name another file with --output",
        ) from error
    return len(data)


def page(sources: Sources) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("sdzero.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = _asset("report.css"), _asset("report.js")
    runs = sources.runs
    against = sources.pooled or (_own_differences(runs[0]) if len(runs) == 1 else {})
    return environment.get_template("report.html").render(
        title=", ".join(dict.fromkeys(str(run.recipe.get("name", run.name)) for run in runs)),
        version=__version__,
        policy=f"default-src 'none'; style-src 'sha256-{_hash(style)}'; script-src 'sha256-{_hash(script)}'",
        # Our own files, and JSON that is escaped for a script block.
        style=Markup(style),
        script=Markup(script),
        verdicts=verdict_of(sources),
        scores=score_tables(sources),
        differences=difference_table(against, _questions(against)) if against else None,
        charts=[_drawn(chart) for chart in learning_charts(runs)],
        concentration=[_drawn(chart) for chart in [concentration_chart(runs)] if chart is not None],
        flows=_flows(sources),
        spent=[_spent(run) for run in runs if run.results is not None],
        comparison=None if sources.comparison is None else comparison_table(sources.comparison),
        studies=[study_table(study) for study in sources.studies],
        provenance=[_provenance(run) for run in runs],
        has_tokens=any(run.tokens for run in runs),
        missing_tokens=[run.folder for run in runs if not run.tokens],
        data=Markup(script_json(token_data(runs))),
    )


def _asset(name: str) -> str:
    return resources.files("sdzero.report").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _drawn(figure: Chart | Flow) -> dict[str, Any]:
    # The image is markup of ours, with every text in it escaped.
    return {**vars(figure), "svg": Markup(figure.svg)}


def _own_differences(run: RunFacts) -> dict[str, Any]:
    return {} if run.results is None else dict(run.results["differences"])


def _questions(against: dict[str, Any]) -> int | None:
    counts = {own.get("questions") for own in against.values()}
    return counts.pop() if len(counts) == 1 else None


def _flows(sources: Sources) -> list[tuple[str, list[dict[str, Any]]]]:
    """The flows of each run's models; of seeds of one recipe their means, with a name for each group."""
    runs = [run for run in sources.runs if run.results is not None]
    groups = [(run.name if len(runs) > 1 else "", [run]) for run in runs]
    if sources.pooled is not None:
        groups = [(f"Means over {len(runs)} seeds", runs)]
    found = []
    for title, own in groups:
        revisions = [(run.results or {})["revision"] for run in own]
        named = [name for name in NAMES if all(one.get(name) for one in revisions)]
        if named:
            drawn = [
                _drawn(flow(NAMES[name], mean_revision([one[name] for one in revisions]))) for name in named
            ]
            found.append((title, drawn))
    return found


def _spent(run: RunFacts) -> dict[str, Any]:
    assert run.results is not None
    budget = run.results["budget"]
    rows = planned_rows(run.plan, budget) if run.plan else []
    syncs = run.stages.get("distill", {}).get("info", {})
    return {
        "name": run.name,
        "stages": Table(f"{run.name}: what each stage took", STAGE_HEADS, stage_rows(budget)),
        "total": (
            f"SD-Zero's training: {budget['responses']:,} responses, {budget['sampled_tokens']:,} sampled"
            f" tokens, {budget['seconds']:,.1f} s. Energy: {energy(budget['joules'])}."
        ),
        "cost": cost(run.recipe, budget),
        "planned": Table(
            f"{run.name}: planned and spent", ["stage", "what", "planned", "spent", "spent / planned"], rows
        )
        if rows
        else None,
        "teacher": (
            f"The teacher is {syncs['teacher']}; syncs with the student: {syncs['syncs']}."
            if "teacher" in syncs and "syncs" in syncs
            else None
        ),
        "sync_steps": _sync_steps(run.logs["distill"]),
    }


def _sync_steps(rows: list[dict[str, Any]]) -> list[int]:
    """The steps whose log is the first to count one more sync."""
    found, before = [], 0
    for row in rows:
        syncs = int(row.get("teacher_syncs", before))
        if syncs > before:
            found.append(int(row["step"]))
        before = syncs
    return found


def _provenance(run: RunFacts) -> dict[str, Any]:
    manifest = run.manifest
    facts = [
        ["folder", str(run.folder)],
        ["started", str(manifest.get("created", ""))],
        ["seed", str(manifest.get("seed", ""))],
        ["model", str((run.results or {}).get("model", (run.recipe.get("model") or {}).get("path", "")))],
        ["SHA-256 of the recipe", str(manifest.get("recipe_sha256", ""))],
        *([f"version of {name}", str(version)] for name, version in manifest.get("versions", {}).items()),
    ]
    if run.results is not None:
        divergence = run.results["divergence"]
        facts.append(["divergence", ", ".join(f"{key}: {value}" for key, value in divergence.items())])
    if run.localization is not None:
        facts.append(["student of the token view", str(run.localization["student"])])
        facts.append(["Reviser of the token view", str(run.localization["reviser"])])
    return {
        "table": Table(f"{run.name}: where it comes from", ["what", "value"], facts),
        "recipe": run.recipe_text,
    }
