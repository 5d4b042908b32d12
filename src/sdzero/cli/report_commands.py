"""The commands that show a run: `localize` and `report`."""

from pathlib import Path
from typing import Annotated

import typer

from sdzero.cli.app import Debug, app
from sdzero.cli.running import guarded
from sdzero.cli.screen import report


@app.command()
def localize(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    responses: Annotated[
        int | None,
        typer.Option(
            help="Responses of each verdict (default: report.responses).", min=1, show_default=False
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Measure token by token where the Reviser would change responses; the report shows it.

    Example: sdzero localize runs/demo
    """

    def work() -> None:
        from sdzero.localize import TOKENS
        from sdzero.localize import localize as measure

        found = measure(folder, responses, report)
        report(f"{found} responses: {folder / TOKENS}")

    guarded(work, debug)


@app.command(name="report")
def report_page(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of runs, of several seeds, of a comparison.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The page (default: FOLDER/report.html).", show_default=False),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="A plan's JSON to set beside what the run took.", show_default=False)
    ] = None,
    debug: Debug = False,
) -> None:
    """Make one HTML page of runs: verdict, scores, curves, tokens, budget. It needs no network to be read.

    Example: sdzero report runs/demo
    """

    def work() -> None:
        from sdzero.report.page import write_report

        page = output or folders[0] / "report.html"
        size = write_report(folders, page, plan)
        report(f"report: {page} ({size / 1e6:.2f} MB)")

    guarded(work, debug)
