"""The commands that score and compare: `evaluate`, `compare`, `study`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdzero.cli.app import AsJson, Debug, NumProcesses, Output, Overrides, RecipeArgument, app
from sdzero.cli.running import guarded, in_processes, on_stages, print_results, print_table, recipe_and_folder
from sdzero.cli.screen import console, report, say_json, showing
from sdzero.errors import UserError

if TYPE_CHECKING:
    from sdzero.pipeline import Stages


@app.command()
def evaluate(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Output = None,
    model: Annotated[str | None, typer.Option(help="A model folder; default: all models of the run.")] = None,
    name: Annotated[str, typer.Option(help="The name to store --model's scores under.")] = "model",
    audit: Annotated[
        int | None,
        typer.Option(
            help="Also print so many verdicts of each model for a person to check, some of every kind.",
            min=1,
            show_default=False,
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="Score on benchmarks in place of the test questions: paper8, math6, code2, or one."
        ),
    ] = None,
    suite_data: Annotated[
        Path | None, typer.Option(help="A folder with local copies of the benchmarks; default: the hub.")
    ] = None,
    lm_eval: Annotated[
        Path | None,
        typer.Option(
            help="A task of lm-evaluation-harness (YAML), or a folder of tasks.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score the run's models, or one model folder, on the test questions, on a suite of benchmarks, or on
    tasks of lm-evaluation-harness.

    Example: sdzero evaluate recipes/demo.yaml --output runs/demo --audit 50
    """

    def work() -> None:
        settings, folder = recipe_and_folder(recipe, overrides, output)
        if lm_eval is not None:
            for given, option in ((suite, "--suite"), (audit, "--audit"), (suite_data, "--suite-data")):
                if given is not None:
                    raise UserError("this does not go with --lm-eval", option, "evaluate once with each")
        if suite is not None:
            from sdzero.evaluate.suite_table import print_suite
            from sdzero.evaluate.suites import benchmarks_of

            benchmarks_of(suite)  # a wrong name is told before anything is loaded
            if audit is not None:
                raise UserError("an audit is of test questions", "--audit", "leave it out with --suite")
            scores = on_stages(settings, folder, lambda stages: stages.suite(suite, model, name, suite_data))
            if as_json:
                say_json(scores)
            else:
                print_suite(scores, folder, console)
            return
        if lm_eval is not None:
            tasks = lm_eval
            scored_by_it = on_stages(settings, folder, lambda stages: stages.harness(tasks, model, name))
            if as_json:
                say_json(scored_by_it)
                return
            for one, results in scored_by_it.items():
                for task, metrics in results.items():
                    shown = ", ".join(f"{key} {v:.4g}" for key, v in metrics.items() if isinstance(v, float))
                    report(f"{one}, {task}: {shown}")
            return
        if suite_data is not None:
            raise UserError("this goes with --suite", "--suite-data", "name a suite: --suite paper8")

        def scored(stages: "Stages") -> dict[str, Any]:
            found = stages.evaluate_all() if model is None else stages.evaluate_folder(name, model)
            if audit is not None:
                from sdzero.evaluate.audit import print_audits

                print_audits(stages, stages.models() if model is None else [name], audit, console)
            return found

        found = on_stages(settings, folder, scored)
        if model is None or as_json:
            print_results(found, folder, as_json)
            return
        score = found["evaluation"]
        report(
            f"{name}: avg@{score['k']} {score['avg']:.1%} (s.e. {score['se']:.1%}), pass@{score['k']}"
            f" {score['pass_at_k']:.1%}, {score['mean_tokens']:.1f} tokens, {score['questions']} questions"
        )

    guarded(work, debug, as_json)


@app.command()
def compare(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder (default: runs/NAME-compare).", show_default=False),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Methods, with commas. `grpo@tokens`: GRPO at equal sampled tokens.")
    ] = "base,sft,rft,grpo,sdft,srt,sdzero",
    seeds: Annotated[int, typer.Option(help="How many seeds, from the recipe's on.", min=1)] = 5,
    num_processes: NumProcesses = 1,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """SD-Zero against the baselines: same questions, one budget, a learning-rate search each, statistics.

    Example: sdzero compare recipes/demo.yaml --methods base,rft,grpo,srt,sdzero --seeds 5
    """
    in_processes(num_processes)

    def work() -> None:
        settings, folder = recipe_and_folder(recipe, overrides, output, "-compare")
        from sdzero.compare import compare as run_compare
        from sdzero.compare_methods import parse_methods
        from sdzero.compare_results import compare_table, notes

        named = parse_methods([name.strip() for name in methods.split(",") if name.strip()])
        with showing(folder) as progress:
            results = run_compare(settings, folder, named, seeds, report, progress)
        if as_json:
            say_json(results)
            return
        print_table(compare_table(results), notes(results), folder / "compare.json")

    guarded(work, debug, as_json)


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="Which study; `list` lists them.", show_default=False)],
    recipe: Annotated[
        Path | None, typer.Argument(help="The recipe, a YAML file.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder (default: runs/NAME-compare).", show_default=False),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds, from the recipe's on.", min=1)] = 3,
    num_processes: NumProcesses = 1,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """One of the paper's studies, beside the runs of a comparison in the same folder.

    Example: sdzero study loss recipes/demo.yaml --seeds 3
    """
    in_processes(num_processes)

    def work() -> None:
        from sdzero.studies.run import (
            STUDIES,
            measured_lines,
            paper_line,
            run_study,
            study_named,
            study_notes,
            study_table,
        )

        if name == "list":
            if as_json:
                say_json({one.name: one.asks for one in STUDIES.values()})
                return
            for one in STUDIES.values():
                report(f"{one.name}: {one.asks}")
            return
        wanted = study_named(name)
        if recipe is None:
            raise UserError("a study needs a recipe", "RECIPE", f"sdzero study {name} recipes/demo.yaml")
        settings, folder = recipe_and_folder(recipe, overrides, output, "-compare")
        with showing(folder) as progress:
            results = run_study(settings, folder, wanted, seeds, report, progress)
        if as_json:
            say_json(results)
            return
        lines = (study_notes(results), *measured_lines(results), paper_line(results))
        print_table(study_table(results), lines, folder / f"study-{name}.json")

    guarded(work, debug, as_json)
