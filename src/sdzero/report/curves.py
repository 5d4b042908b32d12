"""Learning curves of the runs of a page, one line a run (or a run and a reward)."""

import math
from collections.abc import Sequence
from typing import Any

from sdzero.report.charts import Chart, Line, line_chart
from sdzero.report.source import RunFacts

STEP = "step of phase 2"


def learning_charts(runs: Sequence[RunFacts]) -> list[Chart]:
    """The charts for which some run has logged numbers."""
    charts = [
        line_chart("Reward of the student's responses", STEP, _of(runs, "reward"), percent=True),
        line_chart("Length of the responses, tokens", STEP, _of(runs, "tokens")),
        line_chart(
            "Divergence from the Reviser, nats per token",
            STEP,
            [
                Line(
                    _named(run, runs, f"r = {reward}"), _points(run.logs["distill"], f"divergence_r{reward}")
                )
                for run in runs
                for reward in (0, 1)
            ],
        ),
        line_chart("Entropy of the student, nats per token", STEP, _of(runs, "entropy")),
        line_chart(
            "Words of doubt and of revision, per 1,000 tokens",
            STEP,
            [
                Line(_named(run, runs, words), [(row["step"], row[key]) for row in run.style])
                for run in runs
                for key, words in (("hedges", "doubt"), ("revisions", "revision"))
            ],
        ),
        line_chart("Score on the tuning set", STEP, _of(runs, "eval_avg"), percent=True),
        line_chart(
            "Loss of phase 1",
            "step of phase 1",
            [Line(run.name, _points(run.logs["srt"], "loss")) for run in runs],
        ),
    ]
    return [chart for chart in charts if chart is not None]


def concentration_chart(runs: Sequence[RunFacts]) -> Chart | None:
    """Which share of a response's divergence its most divergent tokens hold, for r = 0 and r = 1."""
    lines = []
    for run in runs:
        for reward in (0, 1):
            group = (run.localization or {}).get(f"r{reward}", {})
            points = [
                (point["tokens"], point["divergence"]["mean"])
                for point in group.get("curve", [])
                if point["divergence"] is not None
            ]
            lines.append(Line(_named(run, runs, f"r = {reward}"), [(0.0, 0.0), *points] if points else []))
    lines.append(
        Line("if it were flat", [(0.0, 0.0), (1.0, 1.0)] if any(one.points for one in lines) else [])
    )
    return line_chart(
        "Share of the divergence", "share of the tokens, the most divergent first", lines, percent=True
    )


def _of(runs: Sequence[RunFacts], key: str) -> list[Line]:
    return [Line(run.name, _points(run.logs["distill"], key)) for run in runs]


def _points(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that have the value. The steps of a later part go on behind the earlier.

    A value that is no number, as in a training that diverged, has no place on an axis and is left out.
    """
    points, offset, last, part = [], 0.0, 0.0, None
    for row in rows:
        if part is not None and row.get("part") != part:
            offset = last
        part = row.get("part")
        last = offset + float(row["step"])
        # The log writes what is not finite as text.
        value = math.nan if row.get(key) is None else float(row[key])
        if math.isfinite(value):
            points.append((last, value))
    return points


def _named(run: RunFacts, runs: Sequence[RunFacts], what: str) -> str:
    return what if len(runs) == 1 else f"{run.name}, {what}"
