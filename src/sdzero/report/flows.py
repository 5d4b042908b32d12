"""Generate, then revise: how many responses go from right or wrong to right or wrong, as a flow chart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdzero.report.charts import svg

WIDTH, HEIGHT = 340, 150
BAR, TOP, TALL, GAP = 16, 24, 100, 14
FROM, TO = 92, 232


@dataclass(frozen=True)
class Flow:
    """Shares of all first responses: by what they were, and what they were after the revision."""

    label: str
    right_right: float
    right_wrong: float
    wrong_right: float
    wrong_wrong: float
    svg: str


def flow(label: str, revision: Mapping[str, float]) -> Flow:
    """The four shares from `first`, `correction_rate` and `regression_rate` of `results.json`."""
    first = revision["first"]
    wrong_right = (1 - first) * revision["correction_rate"]
    right_wrong = first * revision["regression_rate"]
    right_right, wrong_wrong = first - right_wrong, (1 - first) - wrong_right
    text = (
        f"{label}: {first:.1%} right before and {revision['revised']:.1%} after the revision;"
        f" {wrong_right:.1%} went from wrong to right, {right_wrong:.1%} from right to wrong"
    )
    after = right_right + wrong_right
    # Heights on both sides, right above wrong, with a gap between the two.
    lower_left, lower_right = TOP + first * TALL + GAP, TOP + after * TALL + GAP
    parts = [
        _band("right", TOP, TOP, right_right),
        _band("lost", TOP + right_right * TALL, lower_right, right_wrong),
        _band("won", lower_left, TOP + right_right * TALL, wrong_right),
        _band("wrong", lower_left + wrong_right * TALL, lower_right + right_wrong * TALL, wrong_wrong),
    ]
    for across, share, side in ((FROM - BAR, first, "end"), (TO, after, "start")):
        at = across - 6 if side == "end" else across + BAR + 6
        parts.append(
            f'<rect class="bar-right" x="{across}" y="{TOP}" width="{BAR}" height="{share * TALL:.1f}"/>'
        )
        parts.append(
            f'<rect class="bar-wrong" x="{across}" y="{TOP + share * TALL + GAP:.1f}" width="{BAR}"'
            f' height="{(1 - share) * TALL:.1f}"/>'
        )
        parts.append(_text(at, TOP + 10, f"right {share:.0%}", side))
        parts.append(_text(at, TOP + TALL + GAP, f"wrong {1 - share:.0%}", side))
    parts.append(_text(FROM - BAR, 14, "before", "start") + _text(TO + BAR, 14, "after", "end"))
    return Flow(
        label, right_right, right_wrong, wrong_right, wrong_wrong, svg(WIDTH, HEIGHT, text, "".join(parts))
    )


def mean_revision(revisions: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One revision whose four shares are the means of those of several."""
    count = len(revisions)
    first = sum(one["first"] for one in revisions) / count
    won = sum((1 - one["first"]) * one["correction_rate"] for one in revisions) / count
    lost = sum(one["first"] * one["regression_rate"] for one in revisions) / count
    return {
        "first": first,
        "revised": first + won - lost,
        "correction_rate": won / (1 - first) if first < 1 else 0.0,
        "regression_rate": lost / first if first > 0 else 0.0,
    }


def _band(kind: str, left: float, right: float, share: float) -> str:
    """A band of one height from a place on the left to one on the right."""
    if share <= 0:
        return ""
    tall, middle = share * TALL, (FROM + TO) / 2
    above = f"M{FROM},{left:.1f} C{middle},{left:.1f} {middle},{right:.1f} {TO},{right:.1f}"
    left, right = left + tall, right + tall
    below = f"V{right:.1f} C{middle},{right:.1f} {middle},{left:.1f} {FROM},{left:.1f} Z"
    return f'<path class="flow-{kind}" d="{above} {below}"/>'


def _text(across: float, down: float, words: str, anchor: str) -> str:
    return f'<text class="tick" x="{across:.0f}" y="{down:.0f}" text-anchor="{anchor}">{words}</text>'
