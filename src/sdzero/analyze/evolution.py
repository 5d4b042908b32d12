"""How a run went: curves over the steps of phase 2, read from the run's folder.

The log has a row for each step, with the mean reward, the mean length, the entropy, the divergence by
reward and the number of syncs. Single steps are noisy (a few dozen questions), so they are put into bins.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from sdzero.analyze.style import hedges
from sdzero.errors import UserError
from sdzero.run_dir import RunDir

MEASURES = ("reward", "tokens", "entropy", "divergence_r0", "divergence_r1")
"""The columns of the log that are averaged in each bin."""
BINS = 20


def step_rows(run: RunDir, stage: str = "distill") -> list[dict[str, Any]]:
    """The rows of a stage's log that are of steps (not of evaluations), in order.

    Raises UserError if the stage has no log, or the log has no step.
    """
    name = f"{stage}/log.jsonl"
    if not run.path(name).is_file():
        raise UserError("this stage has no log", str(run.path(name)), f"run `sdzero {stage}` first")
    rows = [row for row in run.read_jsonl(name) if "loss" in row]
    if not rows:
        raise UserError("the log has no steps", str(run.path(name)), f"run `sdzero {stage}` again")
    return rows


def binned(rows: Sequence[dict[str, Any]], bins: int = BINS) -> list[dict[str, Any]]:
    """The rows in at most `bins` consecutive parts of nearly equal size, in order.

    Each part has `first_step`, `last_step`, `steps` (how many), the mean of each of `MEASURES` and
    `hedge_share` over the rows that have it as a finite number (None if none has), and `teacher_syncs` at
    its end (None where the rows do not say). A step without responses of one reward logs 0 as their
    divergence; such zeros are left out. Raises ValueError for bins below 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    parts = min(bins, len(rows))
    edges = [len(rows) * part // parts for part in range(parts + 1)] if parts else []
    return [_part(rows[start:end]) for start, end in itertools.pairwise(edges)]


def _part(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "first_step": rows[0]["step"],
        "last_step": rows[-1]["step"],
        "steps": len(rows),
    }
    for measure in (*MEASURES, "hedge_share"):
        # The log writes what is not finite as text.
        values = [float(row[measure]) for row in rows if measure in row]
        values = [value for value in values if math.isfinite(value)]
        if measure.startswith("divergence_"):
            values = [value for value in values if value != 0]
        found[measure] = statistics.fmean(values) if values else None
    found["teacher_syncs"] = rows[-1].get("teacher_syncs")
    return found


def hedge_shares(
    run: RunDir, decode: Callable[[Sequence[int]], str], stage: str = "distill"
) -> dict[int, float]:
    """The share of each step's responses that hedge at least once (`style.HEDGES`), by step.

    Rollouts are numbered by the steps taken before them, so the file `step-000000` is of step 1 here, as in
    the log. Raises UserError for a damaged file.
    """
    shares: dict[int, float] = {}
    for file in sorted(run.path(f"{stage}/rollouts").glob("step-*.jsonl")):
        rows = run.read_jsonl(str(file.relative_to(run.root)))
        if rows:
            hedged = sum(bool(hedges(decode(row["token_ids"]))) for row in rows)
            shares[int(file.stem.removeprefix("step-")) + 1] = hedged / len(rows)
    return shares


def evolution(
    run: RunDir,
    decode: Callable[[Sequence[int]], str] | None = None,
    stage: str = "distill",
    bins: int = BINS,
) -> list[dict[str, Any]]:
    """The curves of a stage (see `binned`), with `hedge_share` where a decoder is given.

    Raises UserError if the stage has no log.
    """
    rows = step_rows(run, stage)
    if decode is not None:
        shares = hedge_shares(run, decode, stage)
        # A rollout may be there whose step was never logged, but no step without its rollout.
        rows = [row | ({"hedge_share": shares[row["step"]]} if row["step"] in shares else {}) for row in rows]
    return binned(rows, bins)
