"""A run on a terminal: the same few lines, in the same places, from its first second to its last."""

import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sdzero.errors import UserError
from sdzero.live.pace import UNKNOWN, Pace, duration
from sdzero.live.view import RunReader, RunView, StageState, find_run

BARS = " ▁▂▃▄▅▆▇█"
STATE_STYLES = {"running": "green", "finished": "bold green", "stopped": "yellow"}
STAGE_STYLES = {"done": "green", "now": "bold", "waiting": "dim"}
REFRESHES_PER_SECOND = 2.0
SECONDS_BETWEEN_LOOKS = 1.0


def curve(values: tuple[float, ...]) -> str:
    """A small curve of values in [0, 1]: one character each, of a height from empty to full."""
    return "".join(BARS[round(min(max(value, 0.0), 1.0) * (len(BARS) - 1))] for value in values)


def progress_text(done: int, total: int | None, at_most: bool, unit: str) -> str:
    """`120 of 400 responses`, or as much of that as is known."""
    if not total:
        return f"{done:,} {unit}" if done else UNKNOWN
    return f"{done:,} of {'at most ' if at_most else ''}{total:,} {unit}"


def stage_line(stages: tuple[StageState, ...]) -> Text:
    """All stages in order; the one at work stands out, those that are done are green."""
    line = Text(overflow="fold")
    for number, stage in enumerate(stages):
        if number:
            line.append(" > ", "dim")
        shown = f"[{stage.name}]" if stage.state == "now" else stage.name
        line.append(shown, STAGE_STYLES[stage.state])
    return line


def measures(view: RunView) -> str:
    """Reward, length and loss of the last steps."""
    return (
        f"reward {_or_unknown(view.reward, '.3f')}   length {_or_unknown(view.length, '.1f')} tokens"
        f"   loss {_or_unknown(view.loss, '.4f')}"
    )


def divergence_text(view: RunView) -> str:
    """The divergence of the last steps by the reward of the response, in nats per token."""
    named = {"divergence_r0": "wrong", "divergence_r1": "right"}
    shown = ", ".join(f"{named[key]} {value:.4f}" for key, value in view.divergence.items())
    return shown or UNKNOWN


def speed_text(view: RunView) -> str:
    """Tokens and responses a second."""
    speed = view.speed
    return (
        f"{_or_unknown(speed.tokens_per_second, ',.0f')} tokens/s"
        f"   {_or_unknown(speed.responses_per_second, ',.2f')} responses/s"
    )


def render(view: RunView) -> RenderableType:
    """The lines of a run; there are as many whatever is known, so that nothing jumps."""
    head = Text.assemble(
        (view.name, "bold"),
        f"  {view.folder}  ",
        (view.state, STATE_STYLES[view.state]),
        (f"  process {view.process}" if view.process is not None else "", "dim"),
    )
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column()
    rows.add_row("stages", stage_line(view.stages))
    rows.add_row("now", view.part or UNKNOWN)
    rows.add_row("done", progress_text(view.done, view.total, view.at_most, view.unit))
    total = view.total or 1
    rows.add_row("", ProgressBar(total=total, completed=min(view.done, total) if view.total else 0, width=50))
    rows.add_row("left", duration(view.seconds_left))
    rows.add_row("speed", speed_text(view))
    rows.add_row("steps", measures(view))
    rows.add_row("divergence", divergence_text(view))
    rows.add_row("reward", curve(view.rewards) or UNKNOWN)
    rows.add_row(
        "so far",
        f"{view.responses:,} responses, {view.sampled_tokens:,} tokens sampled, {view.trained_tokens:,}"
        f" trained, {duration(view.seconds)}",
    )
    return Group(head, rows)


def plain_lines(view: RunView) -> list[str]:
    """The same as lines of text, for what is no terminal."""
    now = next((stage.name for stage in view.stages if stage.state == "now"), "")
    done = sum(stage.state == "done" for stage in view.stages)
    lines = [f"{view.name}: {view.state}, {done} of {len(view.stages)} stages done, {view.folder}"]
    if now:
        progress = progress_text(view.done, view.total, view.at_most, view.unit)
        lines.append(f"  {view.part}: {progress}, left {duration(view.seconds_left)}")
        lines.append(f"  {speed_text(view)}   {measures(view)}   divergence {divergence_text(view)}")
    lines.append(f"  so far {view.responses:,} responses, {view.sampled_tokens:,} tokens sampled")
    return lines


def _or_unknown(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else format(value, form)


class LiveRun:
    """A steady display of a run that this process works on; what is printed meanwhile stands above it.

    Used as a context manager, and as the `progress` function of a run: what the run says of its progress
    takes the place of what can be read from its folder.
    """

    def __init__(self, console: Console, folder: Path) -> None:
        self._folder = folder
        self._reader: RunReader | None = None
        self._view: RenderableType = Text("starting")
        self._last_look = float("-inf")
        self._pace = Pace()
        self._live = Live(
            console=console,
            get_renderable=self._renderable,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, part: str, done: int, total: int) -> None:
        """Take note of progress."""
        self._pace.note(part, done, total)

    def _renderable(self) -> RenderableType:
        now = time.monotonic()
        if now - self._last_look >= SECONDS_BETWEEN_LOOKS:
            self._last_look = now
            self._view = self._look()
        return self._view

    def _look(self) -> RenderableType:
        try:
            run = find_run(self._folder)
            if self._reader is None or self._reader.folder != run:
                self._reader = RunReader(run)
        except UserError:  # the run has not made its folder yet
            return Text("starting")
        return render(self._with_notes(self._reader.look()))

    def _with_notes(self, view: RunView) -> RunView:
        pace = self._pace
        if not pace.part or pace.done >= pace.total:  # what comes next says nothing before it has begun
            return view
        left = pace.seconds_left()
        return replace(
            view,
            part=pace.part,
            done=pace.done,
            total=pace.total,
            at_most=False,
            unit="steps" if pace.part.endswith("/steps") else "responses",
            seconds_left=view.seconds_left if left is None else left,
        )
