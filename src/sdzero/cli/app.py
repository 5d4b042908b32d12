"""The command's group, and the arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from sdzero.usage import Commands

app = typer.Typer(
    cls=Commands,
    help="Post-train a language model with SD-Zero: binary rewards become dense token-level supervision.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
RecipeArgument = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to override, as key=value (dots between levels).")
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="The run's folder (default: runs/NAME).", show_default=False),
]
SignKey = Annotated[
    Path | None,
    typer.Option(help="A private SSH key to sign the record with, by ssh-keygen.", show_default=False),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
NumProcesses = Annotated[int, typer.Option(help="Processes on this machine (docs/distributed.md).", min=1)]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on standard output, and all else on standard error.")
]
