"""The study of phase 2's options: what later papers proposed, one change at a time (docs/options.md)."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdzero.errors import UserError
from sdzero.pipeline import Stages
from sdzero.studies.phases import whole_run
from sdzero.studies.study import Chosen, Row, Study, changed, own_rows, trained

OPTIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "clip": ("divergence clip 1, scaled", {"divergence_clip": 1.0}),
    "clip-stop": ("divergence clip 1, stopped", {"divergence_clip": 1.0, "clip_gradient": "stop"}),
    "entropy": ("half of the tokens, by entropy", {"token_share": 0.5}),
    "contrast": ("contrast 0.5", {"contrast": 0.5}),
    "hybrid": ("policy gradient, weight 1", {"policy_gradient_weight": 1.0}),
    "hybrid-3": ("policy gradient, weight 3", {"policy_gradient_weight": 3.0}),
    "solve-rate": ("questions by solve rate", {"question_sampling": "solve_rate"}),
    "ema": ("EMA teacher, decay 0.98", {"teacher_decay": 0.98}),
}
"""Stage -> label, and what is changed in phase 2's settings."""

REHEARSAL_WEIGHT = 0.3
"""In the variants whose teacher is synchronised, if the recipe has none."""
EVALUATIONS = 6
"""How often the variant that waits for the tuning score looks at it."""


def option_rows(stages: Stages, chosen: Chosen) -> dict[str, Row]:
    """Phase 2 from the same SRT model with each option alone, and with two ways to sync the teacher; and a
    second collection, from the SRT model of the first, on the other half of N1."""
    rows = own_rows(stages, "srt", "sdzero")
    settings = chosen.distill
    plain = {"teacher_decay": None, "sync": "never", "sync_every": None}
    steps = math.ceil(len(stages.sets.n2) / settings.batch_size) * settings.epochs
    rehearsed = {"rehearsal_weight": settings.rehearsal_weight or REHEARSAL_WEIGHT}
    half, often = max(1, steps // 2), max(1, steps // EVALUATIONS)
    syncs: dict[str, tuple[str, dict[str, Any]]] = {
        "sync-half": ("sync after half of the steps", {**rehearsed, "sync": "steps", "sync_every": half}),
        "plateau": (
            "sync on a plateau, best model kept",
            {**rehearsed, "sync": "plateau", "evaluate_every": often},
        ),
    }
    for name, (label, values) in {**OPTIONS, **syncs}.items():
        own = changed(settings, **{**plain, **values})
        stages.distill(f"option-{name}", own)
        stage = f"option-{name}"
        rows[stage] = Row(label, trained(stages, stage), ("collect", "srt", stage))
    collect = changed(stages.recipe.collect, rounds=2)
    twice = replace(stages, recipe=changed(stages.recipe, collect=collect))
    rows["twice"] = whole_run(twice, "twice", "two rounds of collection", changed(settings, **plain))
    return rows


def check_tuning(stages: Stages) -> None:
    """Raise UserError if there is no tuning set, at which one of the variants looks."""
    if not stages.sets.tuning:
        raise UserError(
            "a variant syncs by the tuning score, and there is no tuning set",
            "data.tuning",
            "set it above 0",
        )


OPTION_STUDIES = (
    Study(
        "options",
        "Do the options that later papers proposed help?",
        {},
        option_rows,
        trains_srt=True,
        check=check_tuning,
    ),
)
