"""How the command ends: its exit statuses, and errors of usage in the form of all other errors."""

import sys
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

EXIT_STATUSES = {
    0: "finished; or asked to stop by SIGTERM or SIGUSR1 (then the last line says how to resume)",
    1: "an error, or a check of `sdzero doctor` that did not hold; the message says what to do",
    2: "wrong usage: an unknown command or option, or a missing argument",
    130: "Ctrl-C: at once, as after a kill",
}
"""Every status that the command ends with."""

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""The class of all errors of usage: typer gives it no public name of its own."""


def print_error(text: str) -> None:
    """An error as people get it: what, where, and what to do, on standard error."""
    Console(stderr=True).print(f"[red]error:[/red] {escape(text)}", highlight=False, soft_wrap=True)


class Commands(TyperGroup):
    """The group of all commands, which tells errors of usage as other errors are told."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command; in the usual, standalone mode this ends the process."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        try:
            result = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except USAGE_ERROR as error:
            sys.exit(_tell(error))
        sys.exit(result if isinstance(result, int) else 0)


def _tell(error: Any) -> int:
    context = error.ctx
    place = context.command_path if context is not None else "sdzero"
    if type(error).__name__ == "NoArgsIsHelpError":
        print(context.get_help())
        return int(error.exit_code)
    message = error.format_message().rstrip(".")
    print_error(f"{message[:1].lower()}{message[1:]}\n  where: {place}\n  to do: see `{place} --help`")
    return int(error.exit_code)
