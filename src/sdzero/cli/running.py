"""How every command runs and ends: errors in words, several processes, an open run, its results."""

import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from sdzero import launch, process_group, ranks, stopping
from sdzero.cli.screen import console, json_alone, report, say_json, showing
from sdzero.errors import UserError
from sdzero.offline import load_recipe
from sdzero.recipe import Recipe
from sdzero.usage import print_error

if TYPE_CHECKING:
    from rich.table import Table

    from sdzero.pipeline import Stages


def advice(error: Exception) -> str:
    """What to do about an error that nobody foresaw."""
    if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
        return (
            "lower rollout.batch_size while sampling, or micro_batch_size and distill.chunk_tokens while"
            " training, and start in a new folder; finished batches of this one are kept"
        )
    if isinstance(error, PermissionError):
        return "make it readable for this user (and a folder of results writable), or name another place"
    return "run again with --debug for the traceback; what was finished is kept"


def guarded(command: Callable[[], None], debug: bool, as_json: bool = False) -> None:
    """Run a command, in each of a run's processes; a user's error is printed without a traceback and ends
    with status 1."""
    try:
        with json_alone(as_json), process_group.joined():
            console.quiet = not ranks.is_first()
            command()
    except process_group.PeerError as error:
        first_line = str(error).partition("\n")[0]  # that process has printed the rest
        Console(stderr=True).print(escape(f"stopped: {first_line}"), highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except stopping.Stopped as asked:
        if not console.quiet:  # the first process
            typer.echo(f"stopped by {asked}; what was finished is kept", err=as_json)
            typer.echo(f"resume with: sdzero {shlex.join(sys.argv[1:])}", err=as_json)
        raise typer.Exit(0) from None
    except UserError as error:
        if debug:
            raise
        print_error(str(error))
        raise typer.Exit(1) from None
    except Exception as error:  # the last resort: the user gets a sentence, --debug the traceback
        if debug:
            raise
        print_error(f"{type(error).__name__}: {error}\n  to do: {advice(error)}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted: run the same command again to go on from here")
        raise typer.Exit(130) from None


def in_processes(number: int) -> None:
    """Run this very command in so many processes, and end with their status, unless they run it already."""
    if number > 1 and not launch.is_started():
        raise typer.Exit(launch.launch(sys.argv[1:], number))


def recipe_and_folder(
    recipe: Path, overrides: list[str] | None, output: Path | None, ending: str = ""
) -> tuple[Recipe, Path]:
    """The recipe as it is asked for, and the folder to work in: that of `--output`, or runs/NAME + ending."""
    settings = load_recipe(recipe, overrides or [])
    return settings, output or Path("runs") / f"{settings.name}{ending}"


def on_stages(recipe: Recipe, folder: Path, work: Callable[["Stages"], Any]) -> Any:
    """Open the run and work on its stages."""
    from sdzero.pipeline import open_run

    with showing(folder) as progress, open_run(recipe, folder, report, progress) as stages:
        return work(stages)


def print_results(results: dict[str, Any], folder: Path, as_json: bool = False) -> None:
    """The table, the differences, and where the figures are stored; or the results as JSON."""
    if as_json:
        say_json(results)
        return
    from sdzero.results import difference_lines, results_table, seeds_table

    table = seeds_table(results) if "seeds" in results else results_table(results)
    print_table(table, difference_lines(results), folder / "results.json")


def print_table(table: "Table", lines: Iterable[str], file: Path) -> None:
    """A table of results, what there is to say about it, and where the figures are stored."""
    console.print(table)
    for line in lines:
        report(line)
    report(f"results: {file}")


def print_suite_of(recipe: Recipe, folder: Path, as_json: bool = False) -> None:
    """The table of the suite that the recipe names, if it does; as JSON it is left to its file."""
    if recipe.suite.name is not None and not as_json:
        from sdzero.evaluate.suite_table import print_suite
        from sdzero.run_dir import RunDir

        scores = RunDir.unlocked(folder).read_json(f"suites/{recipe.suite.name}.json")
        print_suite(scores, folder, console)
