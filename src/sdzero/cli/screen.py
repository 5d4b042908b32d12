"""What the command writes, and where: lines, a steady display on a terminal, or JSON alone."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape

from sdzero import ranks
from sdzero.live.pace import Pace, duration

# Without a terminal rich assumes 80 columns, and would shorten the words of the table.
console = Console() if sys.stdout.isatty() else Console(width=120)
SECONDS_BETWEEN_LINES = 5.0

_json_output: list[TextIO] = []
"""The standard output while JSON alone goes there; everything else that prints is led to standard error."""


class Lines:
    """Progress as plain lines: at most one every few seconds, and always the last of a part."""

    def __init__(self) -> None:
        self._last_line = 0.0
        self._part = ""
        self._pace = Pace()

    def __call__(self, part: str, done: int, total: int) -> None:
        if not ranks.is_first():
            return
        now = time.monotonic()
        self._pace.note(part, done, total)
        if part != self._part:
            self._part, self._last_line = part, now
        if done < total and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        left = self._pace.seconds_left() if done < total else None
        shown = "" if left is None else f", {duration(left)} left"
        console.print(f"  {part}: {done:,} of {total:,}{shown}", highlight=False, style="dim")


@contextlib.contextmanager
def showing(folder: Path) -> Iterator[Callable[[str, int, int], None]]:
    """How progress is shown of runs in the folder: a steady display on a terminal, lines elsewhere."""
    if not console.is_terminal or console.is_dumb_terminal or console.quiet:
        yield Lines()
        return
    from sdzero.live.display import LiveRun

    with LiveRun(console, folder) as live:
        yield live


@contextlib.contextmanager
def json_alone(wanted: bool) -> Iterator[None]:
    """With `--json` nothing but `say_json` writes to standard output."""
    if not wanted:
        yield
        return
    _json_output.append(sys.stdout)
    console.stderr = True
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        console.stderr = False
        _json_output.pop()


def say_line(text: str) -> None:
    """Write a line to standard output at once, with `--json` too; of the first process."""
    if ranks.is_first():
        print(text, file=_json_output[-1] if _json_output else sys.stdout, flush=True)


def say_json(value: Any, indent: int | None = 2) -> None:
    """Write a value to standard output as JSON."""
    say_line(json.dumps(value, indent=indent, ensure_ascii=False))


def report(text: str) -> None:
    """One line for the user, of the first process."""
    if ranks.is_first():
        console.print(escape(text), highlight=False)
