"""The study of rollouts one step ahead: what is lost where responses are one update old (docs/options.md)."""

from sdzero.pipeline import Stages
from sdzero.studies.recommended import PAPER
from sdzero.studies.study import Chosen, Row, Study, changed, own_rows, trained

ROLLOUTS_AHEAD = {"on-policy": (0, "on-policy"), "ahead": (1, "rollouts one step ahead")}
"""Stage -> the setting, and the row's label."""


def ahead_rows(stages: Stages, chosen: Chosen) -> dict[str, Row]:
    """Phase 2 with the paper's settings from the same SRT model, both ways."""
    rows = own_rows(stages, "srt")
    for name, (value, label) in ROLLOUTS_AHEAD.items():
        stages.distill(name, changed(chosen.distill, **{**PAPER, "rollouts_ahead": value}))
        rows[name] = Row(label, trained(stages, name), ("collect", "srt", name))
    return rows


AHEAD_STUDIES = (
    Study(
        "ahead",
        "Do rollouts one step ahead cost anything?",
        {},
        ahead_rows,
        reference="on-policy",
        trains_distill=False,
    ),
)
