"""The command `sdzero`. Heavy imports happen inside the commands, so that help and errors are quick.

A command is a function with `@app.command()` in a module `..._commands`, and its work runs in `guarded`.
"""

import sys

# isort: off
# The commands stand in the help page in the order in which their modules are imported.
from sdzero.cli import run_commands  # noqa: F401
from sdzero.cli import score_commands  # noqa: F401
from sdzero.cli import model_commands  # noqa: F401
from sdzero.cli import report_commands  # noqa: F401
from sdzero.cli import machine_commands  # noqa: F401
from sdzero.cli import bundle_commands  # noqa: F401
from sdzero.cli import plan_commands  # noqa: F401

# isort: on
from sdzero.cli.app import app
from sdzero.cli.screen import Lines, report
from sdzero.offline import load_recipe

__all__ = ["Lines", "app", "load_recipe", "main", "report"]


def main() -> None:
    """Entry point of the command."""
    try:
        app()
    except BrokenPipeError:
        sys.exit(1)
