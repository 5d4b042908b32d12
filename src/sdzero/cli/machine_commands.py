"""The commands around a run: `doctor`, `init`, `watch`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from sdzero.cli.app import AsJson, Debug, Output, Overrides, app
from sdzero.cli.running import guarded
from sdzero.cli.screen import console, report, say_json, say_line
from sdzero.network_guard import guarded as guarded_network
from sdzero.offline import load_recipe


@app.command()
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe whose needs are looked at too.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    output: Output = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out the self-test, which loads the model.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: Debug = False,
) -> None:
    """Check this machine: versions, the sandbox, attacks on it; with a recipe its data, verifier and model,
    room on disk and in memory, what would go online, and a self-test of the divergence on the model itself.

    Ends with status 1 if anything did not hold.

    Example: sdzero doctor recipes/demo.yaml
    """
    held = True

    def work() -> None:
        nonlocal held
        from sdzero.onprem.doctor import examine, show, show_json

        settings = None if recipe is None else load_recipe(recipe, overrides or [])
        online = settings is not None and settings.online
        with nullcontext() if online else guarded_network(()):
            findings = examine(settings, quick, output)
        held = all(finding.held for finding in findings)
        if as_json:
            typer.echo(show_json(findings))
        else:
            show(findings, console)

    guarded(work, debug)
    if not held:
        raise typer.Exit(1)


@app.command()
def init(
    model: Annotated[str, typer.Option(help="The model's folder.", show_default=False)],
    data: Annotated[str, typer.Option(help="Questions: JSONL, CSV or parquet.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The recipe to write, a new file.")] = Path(
        "recipe.yaml"
    ),
    question_field: Annotated[
        str | None, typer.Option(help="The column of questions, in place of a guess.", show_default=False)
    ] = None,
    answer_field: Annotated[
        str | None, typer.Option(help="The column of answers, in place of a guess.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Look at a model and at data, and write a first recipe for them, with the reasons in it.

    Example: sdzero init --model models/qwen3-4b --data questions.jsonl --output recipe.yaml
    """

    def work() -> None:
        from sdzero.first_recipe.write import write_first_recipe

        written = write_first_recipe(model, data, output, question_field, answer_field)
        if as_json:
            say_json({"recipe": str(written.file), "seen": written.seen, "check": written.check})
            return
        for line in written.seen:
            report(line)
        report("please check:")
        for line in written.check:
            report(f"  {line}")
        report(f"recipe: {output}")
        report(f"next: sdzero doctor {output}; sdzero run {output} --dry-run; sdzero run {output}")

    guarded(work, debug, as_json)


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or one with several runs.")],
    once: Annotated[bool, typer.Option("--once", help="Print the state of now, and end.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 2.0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show a run that goes on elsewhere: its stage, speed, reward, length, divergence, and the time left.

    It reads the run's folder only, and ends when the run ends.

    Example: sdzero watch runs/demo
    """

    def work() -> None:
        from sdzero.live.watch import watch as watch_run

        watch_run(folder, console, once=once, as_json=as_json, every=every, write=say_line)

    guarded(work, debug, as_json)
