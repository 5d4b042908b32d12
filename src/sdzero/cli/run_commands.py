"""The commands that train: `run` and its single stages."""

from typing import Annotated

import typer

from sdzero.cli.app import AsJson, Debug, NumProcesses, Output, Overrides, RecipeArgument, app
from sdzero.cli.running import (
    guarded,
    in_processes,
    on_stages,
    print_results,
    print_suite_of,
    recipe_and_folder,
)
from sdzero.cli.screen import report, say_json, showing


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Output = None,
    seeds: Annotated[int, typer.Option(help="How many seeds to run, from the recipe's on.", min=1)] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="One step of each stage with a small random model.")
    ] = False,
    num_processes: NumProcesses = 1,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run all stages: collect, srt, distill, the RFT control, evaluate. Safe to repeat: it resumes.

    Example: sdzero run recipes/demo.yaml distill.learning_rate=1e-4 --output runs/mine
    """
    in_processes(num_processes)

    def work() -> None:
        settings, folder = recipe_and_folder(recipe, overrides, output, "-dry-run" if dry_run else "")
        if dry_run:
            from sdzero.dry_run import dry_run as try_out

            with showing(folder / "run") as progress:
                results = try_out(settings, folder, report, progress)
            if as_json:
                say_json(results)
            return
        if seeds == 1:
            print_results(on_stages(settings, folder, lambda stages: stages.run_all()), folder, as_json)
            print_suite_of(settings, folder, as_json)
            return
        from sdzero.compare_methods import with_seed
        from sdzero.results import over_seeds
        from sdzero.run_dir import RunDir

        every = []
        for seed in range(settings.seed, settings.seed + seeds):
            report(f"seed {seed}")
            own = on_stages(
                with_seed(settings, seed), folder / f"seed-{seed}", lambda stages: stages.run_all()
            )
            if not as_json:
                print_results(own, folder / f"seed-{seed}")
                print_suite_of(settings, folder / f"seed-{seed}")
            every.append(own)
        summary = over_seeds(every)
        RunDir.unlocked(folder).write_json("results.json", summary)
        print_results(summary, folder, as_json)

    guarded(work, debug, as_json)


@app.command()
def collect(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Output = None,
    round_: Annotated[int, typer.Option("--round", help="Which round of collection.", min=1)] = 1,
    debug: Debug = False,
) -> None:
    """Phase 1a: sample initial responses, grade them, sample revisions, keep the verified traces.

    Example: sdzero collect recipes/demo.yaml --output runs/demo
    """

    def work() -> None:
        settings, folder = recipe_and_folder(recipe, overrides, output)
        on_stages(settings, folder, lambda stages: stages.collect(round_))
        report(f"traces: {folder / 'collect'}")

    guarded(work, debug)


@app.command()
def srt(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Output = None,
    round_: Annotated[int, typer.Option("--round", help="Up to which round of collection.", min=1)] = 1,
    debug: Debug = False,
) -> None:
    """Phase 1b: train the base model on the traces that `sdzero collect` left in the run's folder.

    Example: sdzero srt recipes/demo.yaml --output runs/demo
    """

    def work() -> None:
        settings, folder = recipe_and_folder(recipe, overrides, output)
        on_stages(settings, folder, lambda stages: stages.srt(round_))
        report(f"model: {folder / 'srt'}")

    guarded(work, debug)


@app.command()
def distill(
    recipe: RecipeArgument, overrides: Overrides = None, output: Output = None, debug: Debug = False
) -> None:
    """Phase 2: distill the Reviser into the Generator, from the run's SRT model or `srt.checkpoint`.

    Example: sdzero distill recipes/demo.yaml --output runs/demo
    """

    def work() -> None:
        settings, folder = recipe_and_folder(recipe, overrides, output)
        on_stages(settings, folder, lambda stages: stages.distill())
        report(f"model: {folder / 'distill' / 'model'}")

    guarded(work, debug)
