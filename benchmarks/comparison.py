"""The comparison and the studies on the families, from the recipes to the tables of the documents.

    python benchmarks/comparison.py --output runs/comparison --write

runs (or resumes) everything, copies the result files to `benchmarks/results/`, and with `--write` fills
the marked blocks of docs/comparison.md, docs/options.md, docs/thinking.md and
README.md. `--only walks` takes one family, `--parts compare` one part. On two cores the whole takes two
to three hours; families can run side by side, one process each, with OMP_NUM_THREADS=1.
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from documents import README, RESULTS, ROOT, fill

PAGE = ROOT / "docs" / "comparison.md"
FAMILIES = {"arithmetic": "demo", "spelling": "spelling", "walks": "walks", "edits": "edits"}
"""Family -> recipe."""
ALL_FAMILIES = (*FAMILIES, "starts")
STUDY_FAMILIES = {
    "thinking": ("starts",),
    "labels": ("arithmetic", "spelling"),
    "ahead": ("arithmetic", "spelling", "walks"),
}
"""Studies that are run on these families only; `starts` has no comparison and no other study."""
OVERRIDES = {
    # What is chosen is chosen on the tuning set, with the seed of the searches.
    "options": ["evaluate.on=tuning", "seed=1000"],
    "ahead": ["evaluate.on=tuning", "seed=1000"],
    # In comparisons no method above SFT was best at half of its rate.
    "recommended": ["compare.rate_factors=[1.0,2.0]"],
}
"""Studies whose recipe is not as it stands; their folders are of their own."""
PAGES = {"options": "options", "ahead": "options", "recommended": "options", "thinking": "thinking"}
"""Study -> the page in docs/ that has its block, if that is not comparison.md."""
METHODS = "base,sft,rft,grpo,grpo@tokens,sdft,srt,sdzero"
SEEDS = 5
LONG_STUDIES = ("phrase", "forgetting", "filter", "divergence", "allocation", "options", "labels")
STUDIES = (
    "loss",
    "no-srt",
    "revise",
    "curves",
    "localization",
    "demonstrations",
    "negative",
    "sync",
    "phrase",
    "forgetting",
    "filter",
    "divergence",
    "allocation",
    "options",
    "ahead",
    "recommended",
    "labels",
    "thinking",
)


def run_family(family: str, output: Path, parts: Sequence[str], seeds: int, study_seeds: int | None) -> None:
    """Run what is missing of one family, and keep the result files."""
    from sdzero.cli import Lines, report
    from sdzero.compare import compare
    from sdzero.compare_methods import parse_methods
    from sdzero.recipe_io import load_recipe
    from sdzero.studies.run import run_study, study_named

    file = ROOT / "recipes" / f"{FAMILIES.get(family, family)}.yaml"
    recipe = load_recipe(file)
    folder = output / family
    if "compare" in parts and family in FAMILIES:
        compare(recipe, folder, parse_methods(METHODS.split(",")), seeds, report, Lines())
        keep(folder / "compare.json", f"compare-{family}.json")
    for study in STUDIES:
        if family not in STUDY_FAMILIES.get(study, tuple(FAMILIES)):
            continue
        if study in parts or "studies" in parts:
            count = study_seeds or seeds_of(study, family)
            own_recipe, own_folder = recipe, folder
            if study in OVERRIDES:
                own_recipe, own_folder = load_recipe(file, OVERRIDES[study]), output / f"{family}-{study}"
            run_study(own_recipe, own_folder, study_named(study), count, report, Lines())
            keep(own_folder / f"study-{study}.json", f"study-{study}-{family}.json")


def seeds_of(study: str, family: str) -> int:
    """Studies are many trainings, so they have few seeds, and show large effects only."""
    if study == "ahead" and family != "spelling":  # whose runs differ less by seed
        return 8
    if study in ("recommended", "ahead"):
        return SEEDS
    return 2 if study == "thinking" or (family == "arithmetic" and study not in LONG_STUDIES) else 1


def keep(file: Path, name: str) -> None:
    """Copy a result file to where it is committed."""
    RESULTS.mkdir(exist_ok=True)
    shutil.copyfile(file, RESULTS / name)


# ---- the page ----


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [" | ".join(columns), " | ".join("---" for _ in columns), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def stored(name: str) -> Mapping[str, Any] | None:
    """A committed result file, or None."""
    file = RESULTS / name
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def compare_block(family: str) -> str:
    """The block of one comparison."""
    from sdzero.compare_results import columns, notes, rows

    results = stored(f"compare-{family}.json")
    if results is None:
        return "Not measured."
    return markdown(columns(results), rows(results)) + "\n\n" + "\n".join(notes(results))


def summary_block() -> str:
    """One line a family: every method's mean, and SD-Zero's length over SRT's."""
    from sdzero.compare_results import label, percent

    names = METHODS.split(",")
    rows, measured = [], set()
    for family in FAMILIES:
        results = stored(f"compare-{family}.json")
        if results is None:
            continue
        measured.add(f"avg@{results['k']} ({len(results['seeds'])} seeds)")
        methods = results["methods"]
        ratio = methods["sdzero"]["mean_tokens"] / methods["srt"]["mean_tokens"]
        rows.append([family, *(percent(methods[name]["mean"]) for name in names), f"{ratio:.2f}"])
    heads = [" or ".join(sorted(measured)), *(label(name) for name in names), "length SD-Zero / SRT"]
    return markdown(heads, rows) if rows else "Not measured."


def recommended_block() -> str:
    """One line a family: the recommended settings beside the paper's and GRPO, differences with intervals."""
    from sdzero.compare_results import percent

    rows, shown = [], ("base", "srt", "paper", "grpo-tokens", "recommended")
    for family in FAMILIES:
        results = stored(f"study-recommended-{family}.json")
        if results is None:
            continue
        means = [percent(results["rows"][name]["mean"]) for name in shown]
        leads = []
        for name in ("paper", "grpo-tokens"):
            other = results["against_reference"][name]  # the other minus the recommended
            (low, high), (seed_low, seed_high) = other["interval"], other["interval_over_seeds"]
            over_seeds = percent(-other["difference"], (-seed_high, -seed_low), "+").partition(" ")[2]
            leads.append(f"{percent(-other['difference'], (-high, -low), '+')}, over seeds {over_seeds}")
        rows.append([family, *means, *leads])
    heads = ["avg@4, 5 seeds", "base", "SRT", "paper's settings", "GRPO, same tokens", "recommended"]
    return markdown([*heads, "minus paper's", "minus GRPO"], rows) if rows else "Not measured."


def study_block(study: str) -> str:
    """The tables of one study, a family each, and the paper's row."""
    from sdzero.studies.run import measured_lines, paper_line, study_columns, study_rows

    parts, paper = [], ""
    for family in ALL_FAMILIES:
        results = stored(f"study-{study}-{family}.json")
        if results is None:
            continue
        paper = paper_line(results)
        count = len(results["seeds"])
        parts.append(f"{family}, {count} seed{'s' if count > 1 else ''}:")
        if results["rows"]:
            parts.append(markdown(study_columns(results), study_rows(results)))
        lines = measured_lines(results)
        if lines:
            parts.append("\n".join(f"- {line}" for line in lines))
    return "\n\n".join([*parts, paper]) if parts else "Not measured."


def page_of(study: str) -> Path:
    """The page that has a study's block."""
    return ROOT / "docs" / f"{PAGES.get(study, 'comparison')}.md"


def write_pages() -> None:
    """Fill every marked block of the documents."""
    blocks = {f"compare-{family}": compare_block(family) for family in FAMILIES}
    fill(PAGE, blocks)
    for page in sorted({page_of(study) for study in STUDIES}):
        own = [study for study in STUDIES if page_of(study) == page]
        fill(page, {f"study-{study}": study_block(study) for study in own})
    fill(README, {"comparison": summary_block(), "recommended": recommended_block()})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "runs" / "comparison", help="folder of the runs"
    )
    parser.add_argument("--only", action="append", choices=ALL_FAMILIES, help="families (default: all)")
    parser.add_argument(
        "--parts",
        default="compare,studies",
        help="what to run: compare, studies, or single studies (%(default)s)",
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of the comparison (%(default)s)")
    parser.add_argument("--study-seeds", type=int, help="of the studies (default: few, see `seeds_of`)")
    parser.add_argument("--write", action="store_true", help="fill the page's blocks at the end")
    arguments = parser.parse_args()
    unknown = set(arguments.parts.split(",")) - {"compare", "studies", *STUDIES}
    if unknown:
        parser.error(f"--parts: unknown {', '.join(sorted(unknown))}")
    for family in arguments.only or ALL_FAMILIES:
        run_family(
            family, arguments.output, arguments.parts.split(","), arguments.seeds, arguments.study_seeds
        )
    if arguments.write:
        write_pages()


if __name__ == "__main__":
    main()
