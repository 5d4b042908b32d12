"""Line charts as inline SVG: axes, a legend, a text alternative, and the numbers as a table.

Colours are classes (`line-0`, `line-1`, ...), so that the page's style decides on them, in light and dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 40
MOST_POINTS = 160
"""Longer lines are averaged in bins of neighbouring points."""
TABLE_POINTS = 20
STYLES = 6
"""How many styles of lines the page has."""


@dataclass(frozen=True)
class Line:
    """A named line; its points are in the order of x."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A chart for the template. `table` has the points of each line, thinned out to what a person reads."""

    title: str
    svg: str
    x_label: str
    table: list[tuple[str, list[tuple[str, str]]]]
    styles: list[int]
    """The style of each line of the table."""


def line_chart(title: str, x_label: str, lines: Sequence[Line], percent: bool = False) -> Chart | None:
    """A chart of the lines that have points; None if none has. `percent`: y values are fractions."""
    drawn = [
        (index, Line(one.name, thinned(one.points, MOST_POINTS)))
        for index, one in enumerate(lines)
        if one.points
    ]
    if not drawn:
        return None
    xs = [x for _, one in drawn for x, _ in one.points]
    ys = [y for _, one in drawn for _, y in one.points]
    y_ticks = ticks(min(0.0, *ys), max(ys))
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        up = HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return across, up

    parts = []
    for value in y_ticks:
        _, up = place(x_low, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up:.1f}" y2="{up:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{up + 4:.1f}" text-anchor="end">'
            f"{number(value, percent)}</text>"
        )
    for value in ticks(x_low, x_high):
        if not x_low <= value <= x_high:
            continue
        across, _ = place(value, y_low)
        parts.append(
            f'<text class="tick" x="{across:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
            f"{number(value)}</text>"
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="tick" x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for index, one in drawn:
        style = index % STYLES
        places = [place(x, y) for x, y in one.points]
        if len(places) == 1:
            parts.append(
                f'<circle class="dot-{style}" cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3"/>'
            )
        else:
            path = " ".join(f"{across:.1f},{up:.1f}" for across, up in places)
            parts.append(f'<polyline class="line line-{style}" points="{path}"/>')
    description = "; ".join(
        f"{one.name}: from {number(one.points[0][1], percent)} to {number(one.points[-1][1], percent)}"
        for _, one in drawn
    )
    return Chart(
        title=title,
        svg=svg(WIDTH, HEIGHT, f"{title}, by {x_label}. {description}", "".join(parts)),
        x_label=x_label,
        table=[
            (
                one.name,
                [(number(x), number(y, percent)) for x, y in thinned(one.points, TABLE_POINTS)],
            )
            for _, one in drawn
        ],
        styles=[index % STYLES for index, _ in drawn],
    )


def svg(width: int, height: int, label: str, inside: str) -> str:
    """An SVG image with a text alternative; `inside` is markup already."""
    alternative = escape(label, quote=True)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{alternative}">{inside}</svg>'


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points: the means of bins of neighbours. Raises ValueError for numbers that are none."""
    if any(not math.isfinite(value) for point in points for value in point):
        raise ValueError("a point of a chart is not a number")
    size = -(-len(points) // most) if points else 1
    if size == 1:
        return list(points)
    bins = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in own) / len(own), sum(y for _, y in own) / len(own)) for own in bins]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values that cover [low, high], about as many as asked for."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def number(value: float, percent: bool = False) -> str:
    """A number as people write it, to about three digits."""
    if percent:
        return f"{100 * value:.3g}%"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
