"""The commands `sdzero bundle RECIPE`, `sdzero bundle verify` and `sdzero bundle join`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sdzero.cli.app import Debug, Overrides, RecipeArgument, app
from sdzero.cli.running import guarded
from sdzero.cli.screen import report
from sdzero.errors import UserError


class MakesByDefault(TyperGroup):
    """`sdzero bundle RECIPE` means `sdzero bundle make RECIPE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `make` before arguments that begin with none of the commands."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["make", *args]
        return super().parse_args(ctx, args)


bundle = typer.Typer(
    cls=MakesByDefault,
    no_args_is_help=True,
    help="Bring a recipe and all that it needs to a machine without a network: sdzero bundle RECIPE.",
)
app.add_typer(bundle, name="bundle")


@bundle.command()
def make(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder (default: bundles/NAME).", show_default=False),
    ] = None,
    platform: Annotated[
        str, typer.Option(help="For which machines: a manylinux platform.")
    ] = "manylinux_2_28_x86_64",
    python: Annotated[str, typer.Option(help="For which version of Python.")] = "3.11",
    constraints: Annotated[
        Path | None,
        typer.Option(
            help="Exact versions for pip (default: constraints.txt of the source tree).",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="Source tree or wheel of sdzero (default: what runs here).", show_default=False),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Also make parts of this size, such as 4G, for media.", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """Gather wheels, model, data, licences, sums and an installer in one folder. It can be repeated.

    Example: sdzero bundle recipes/demo.yaml --output bundles/demo
    """

    def work() -> None:
        from sdzero.onprem.bundle import Order, default_source, make_bundle
        from sdzero.onprem.media import parse_size
        from sdzero.onprem.media import split as split_bundle
        from sdzero.onprem.wheel_metadata import Target
        from sdzero.recipe_io import load_recipe

        size = None if split is None else parse_size(split)
        settings = load_recipe(recipe, overrides or [])
        tree = source or default_source()
        pins = constraints or (tree / "constraints.txt" if tree.is_dir() else None)
        if pins is not None and not pins.is_file():
            raise UserError("there is no such file", str(pins), "name a file of exact versions")
        folder = output or Path("bundles") / settings.name
        order = Order(settings, Target.parse(platform, python), tree, pins)
        digest = make_bundle(order, folder, report)
        report(f"the bundle: {folder}")
        report("to be compared on the other side, the SHA-256 of its SHA256SUMS:")
        report(f"  {digest}")
        if size is not None:
            report(f"in parts: {split_bundle(folder, size)}")

    guarded(work, debug)


@bundle.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A bundle's folder.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
    debug: Debug = False,
) -> None:
    """Check every file of a bundle. Names each that is wrong, missing or extra; then the status is 1.

    Example: sdzero bundle verify bundles/demo
    """
    whole = True

    def work() -> None:
        nonlocal whole
        from sdzero.onprem.bundle_check import SUMS_NAME, find_faults, read_sums
        from sdzero.onprem.bundle_check import as_json as to_json
        from sdzero.onprem.bundle_files import sum_of

        faults = find_faults(folder)
        whole = not faults
        if as_json:
            typer.echo(to_json(folder, faults))
            return
        for fault in faults:
            report(f"{fault.kind}: {fault.path}")
        count = len(read_sums(folder))
        report(f"{count} files, {f'{len(faults)} faults' if faults else 'all as they were made'}")
        report(f"SHA-256 of {SUMS_NAME}: {sum_of(folder / SUMS_NAME)}")

    guarded(work, debug)
    if not whole:
        raise typer.Exit(1)


@bundle.command()
def join(
    parts: Annotated[Path, typer.Argument(help="The folder with the parts.", show_default=False)],
    to: Annotated[Path, typer.Option(help="The bundle's folder, a new one.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Put a bundle together from its parts, each checked first.

    Example: sdzero bundle join /media/parts --to bundles/demo
    """

    def work() -> None:
        from sdzero.onprem.media import join as join_parts

        join_parts(parts, to)
        report(f"the bundle, every file as it was made: {to}")

    guarded(work, debug)
