"""A plan beside what a run spent: stage by stage, responses, tokens, seconds and peak memory."""

from pathlib import Path
from typing import Any

from sdzero.onprem.plan import Plan, work_json
from sdzero.onprem.plan_memory import CONTEXT, total
from sdzero.onprem.spent import COUNTS, Spent, read_run


def against(plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """A row for each stage that was planned or recorded: `stage`, and by count `planned` and `spent` (None
    where there is nothing). Peak memory is what the stage's log has, if it trains. Raises UserError for no
    run."""
    return against_spent(plan, read_run(folder))


def against_spent(plan: Plan, spent: Spent) -> list[dict[str, Any]]:
    """The same from a run that was read already."""
    planned = {stage.work.name: stage for stage in plan.stages}
    rows = []
    for name in dict.fromkeys([*planned, *spent.stages]):
        own = planned.get(name)
        counts = None if own is None else work_json(own.work, own.time)
        recorded = spent.of(name) if name in spent.stages else None
        rows.append(
            {
                "stage": name,
                "planned": None if counts is None else {count: counts[count] for count in COUNTS},
                "spent": recorded,
                "planned_peak_bytes": None if own is None or own.memory is None else _allocated(plan, own),
                "peak_bytes": spent.peak_memory(name),
            }
        )
    return rows


def _allocated(plan: Plan, stage: Any) -> float:
    """What a log can have: on a GPU what PyTorch allocated, without the context."""
    kind = plan.setting.kind
    return total(stage.memory) - (CONTEXT[kind] if kind == "cuda" else 0.0)
