"""`sdzero watch`: a run that another process works on, here or on another machine with the same disk."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.live import Live

from sdzero.live.display import plain_lines, render
from sdzero.live.view import RunReader, RunView, find_run

SECONDS_WITHOUT_A_PROCESS = 30.0
"""How long nothing may work in a folder of several runs before it counts as ended: between two of them nobody
holds a run."""


class Watcher:
    """Looks at a run, or of several in a folder at the one last at work."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises UserError if there is no run in the folder."""
        self.folder = folder
        self._clock = clock
        self._reader = RunReader(find_run(folder))
        self._last_held = clock()

    def look(self) -> RunView:
        """The run now."""
        run = find_run(self.folder)
        if run != self._reader.folder:
            self._reader = RunReader(run)
        view = self._reader.look()
        if view.state == "running":
            self._last_held = self._clock()
        return view

    def has_ended(self, view: RunView) -> bool:
        """Whether nothing works on the run any more."""
        if view.state == "running":
            return False
        several = self._reader.folder != self.folder
        return not several or self._clock() - self._last_held >= SECONDS_WITHOUT_A_PROCESS


def to_json(view: RunView) -> str:
    """The view as one line of JSON; times in seconds, lengths in tokens, null for what is not known."""
    return json.dumps({"schema": 1, **asdict(view)}, ensure_ascii=False)


def watch(
    folder: Path,
    console: Console,
    *,
    once: bool = False,
    as_json: bool = False,
    every: float = 2.0,
    write: Callable[[str], None] = print,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show a run until it ends, or `once`; as JSON a line for every change.

    On a terminal the display is steady; elsewhere lines are written when something changed. Raises UserError
    if there is no run in the folder.
    """
    watcher = Watcher(folder)
    view = watcher.look()
    if as_json:
        _lines(watcher, view, lambda shown: [to_json(shown)], write, once, every, sleep)
    elif once or not console.is_terminal or console.is_dumb_terminal:
        _lines(watcher, view, plain_lines, write, once, every, sleep)
    else:
        with Live(render(view), console=console, auto_refresh=False) as live:
            while not watcher.has_ended(view):
                sleep(every)
                view = watcher.look()
                live.update(render(view), refresh=True)


def _lines(
    watcher: Watcher,
    view: RunView,
    form: Callable[[RunView], list[str]],
    write: Callable[[str], None],
    once: bool,
    every: float,
    sleep: Callable[[float], None],
) -> None:
    before: list[str] = []
    while True:
        lines = form(view)
        if lines != before:
            for line in lines:
                write(line)
            before = lines
        if once or watcher.has_ended(view):
            return
        sleep(every)
        view = watcher.look()
