"""The commands `sdzero plan` and `sdzero bench`."""

import errno
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdzero.cli.app import Debug, Overrides, RecipeArgument, app
from sdzero.cli.running import guarded
from sdzero.errors import UserError
from sdzero.offline import load_recipe
from sdzero.onprem.plan_cost import POWER_SHARE, PUE, Prices

if TYPE_CHECKING:
    from sdzero.onprem.plan import Plan

WIDTH = 150
"""Columns where the output is no terminal: the tables are wide, and are not to be cut."""

HardwareName = Annotated[
    str,
    typer.Option(
        help="Devices, such as 8xH100-80GB, 1xRTX4090 or cpu; or a YAML file (docs/plan.md).",
        show_default=False,
    ),
]


@app.command()
def plan(
    recipe: RecipeArgument,
    hardware: HardwareName,
    overrides: Overrides = None,
    parallel: Annotated[
        str, typer.Option(help="How several devices share the training: ddp or fsdp2.")
    ] = "ddp",
    model_config: Annotated[
        Path | None, typer.Option(help="A config.json, where the model is not here yet.", show_default=False)
    ] = None,
    mean_tokens: Annotated[
        list[str] | None,
        typer.Option(help="Mean length of responses: 4000, or base=3000 (base, revised, student, ...)."),
    ] = None,
    prompt_tokens: Annotated[
        float | None, typer.Option(help="Mean length of prompts.", min=1, show_default=False)
    ] = None,
    right_share: Annotated[
        float | None,
        typer.Option(help="Share of responses that are right.", min=0, max=1, show_default=False),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="A file of `sdzero bench`, or a run's folder.", show_default=False)
    ] = None,
    measured_on: Annotated[
        str | None,
        typer.Option(
            help="The hardware of that run's folder, where it is not --hardware.", show_default=False
        ),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="A run's folder: what it spent beside the plan.", show_default=False)
    ] = None,
    price_per_gpu_hour: Annotated[
        float | None, typer.Option(help="Of a rented device.", min=0, show_default=False)
    ] = None,
    hardware_price: Annotated[
        float | None, typer.Option(help="Of all the hardware, bought.", min=0, show_default=False)
    ] = None,
    years: Annotated[float, typer.Option(help="For how long bought hardware is used.", min=0.1)] = 4.0,
    utilisation: Annotated[float, typer.Option(help="For what share of that time.", min=0.01, max=1)] = 0.5,
    energy_price: Annotated[float | None, typer.Option(help="Of a kWh.", min=0, show_default=False)] = None,
    pue: Annotated[float, typer.Option(help="The site's energy over its machines'.", min=1)] = PUE,
    power_share: Annotated[
        float, typer.Option(help="Mean over greatest power of the machines.", min=0, max=1)
    ] = POWER_SHARE,
    strict: Annotated[bool, typer.Option("--strict", help="End with status 1 if it does not fit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    debug: Debug = False,
) -> None:
    """Memory, time, energy and cost of a run, before it.

    Example: sdzero plan recipes/qwen3-4b-math.yaml --hardware 8xH100-80GB
    """
    fits = True

    def work() -> None:
        nonlocal fits
        from sdzero.onprem.plan import make_plan, to_json

        if parallel not in ("ddp", "fsdp2"):
            raise UserError(f"`{parallel}` is no way to share the training", "--parallel", "use ddp or fsdp2")
        settings = load_recipe(recipe, overrides or [])
        prices = Prices(
            price_per_gpu_hour, hardware_price, years, utilisation, energy_price, pue, power_share
        )
        made = make_plan(
            settings,
            hardware,
            parallel=parallel,  # type: ignore[arg-type]
            model_config=model_config,
            mean_tokens=mean_tokens or [],
            prompt_tokens=prompt_tokens,
            right=right_share,
            calibration=calibration,
            measured_on=measured_on,
            prices=prices,
        )
        rows = None
        if against is not None:
            from sdzero.onprem.plan_against import against as compared

            rows = compared(made, against)
        if as_json:
            typer.echo(json.dumps(to_json(made) | ({} if rows is None else {"against": rows}), indent=2))
        else:
            _show(made, rows)
        fits = made.fits

    guarded(work, debug)
    if strict and not fits:
        raise typer.Exit(1)


def _show(made: "Plan", rows: "list[dict[str, Any]] | None") -> None:
    import sys

    from rich.console import Console

    from sdzero.onprem import plan_tables as tables

    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    for line in tables.verdict_lines(made):
        console.print(line, highlight=False, markup=False)
    if made.switches:
        console.print(tables.switches_table(made))
    console.print(tables.memory_table(made))
    console.print(tables.time_table(made))
    console.print(tables.methods_table(made))
    if rows is not None:
        console.print(tables.against_table(rows))
    for line in (*tables.price_lines(made), *tables.assumption_lines(made)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def bench(
    recipe: RecipeArgument,
    hardware: HardwareName,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path(
        "calibration.json"
    ),
    steps: Annotated[int, typer.Option(help="Steps of phase 2; the first is not counted.", min=2)] = 3,
    questions: Annotated[
        int | None,
        typer.Option(help="Questions a step (default: the recipe's).", min=1, show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """Measure a few steps of phase 2 on this machine, for `sdzero plan --calibration`.

    Example: sdzero bench recipes/demo.yaml --hardware cpu
    """

    def work() -> None:
        from sdzero.bench import measure

        try:  # before minutes of work, not after
            output.parent.mkdir(parents=True, exist_ok=True)
            if output.is_dir() or not os.access(output.parent, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise UserError(
                f"the calibration cannot be written ({error.strerror})",
                str(output),
                "name another file in --output",
            ) from None
        calibration = measure(
            load_recipe(recipe, overrides or []), hardware, steps, questions, lambda line: typer.echo(line)
        )
        output.write_text(calibration.to_json(), encoding="utf-8")
        typer.echo(f"calibration: {output}")

    guarded(work, debug)
