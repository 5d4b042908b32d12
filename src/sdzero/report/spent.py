"""What a run took: counts and time by stage, energy, cost, and what was planned beside it."""

from collections.abc import Mapping
from typing import Any

from sdzero.recipe_cost import JOULES_PER_KWH, CostSettings

COUNTS = ("responses", "sampled_tokens", "trained_tokens", "seconds")


def stage_rows(budget: Mapping[str, Any]) -> list[list[str]]:
    """A row a stage: its name, counts, seconds with their share of the whole, and energy."""
    stages = budget["by_stage"]
    whole = sum(own["seconds"] for own in stages.values())
    return [
        [
            name,
            f"{own['responses']:,}",
            f"{own['sampled_tokens']:,}",
            f"{own['trained_tokens']:,}",
            f"{own['teacher_tokens']:,}",
            f"{own['seconds']:,.1f} s" + (f" ({own['seconds'] / whole:.0%})" if whole else ""),
            energy(own["joules"]),
        ]
        for name, own in stages.items()
    ]


def energy(joules: float | None) -> str:
    """Energy for people."""
    if joules is None:
        return "not measured"
    return f"{joules / JOULES_PER_KWH:.3g} kWh" if joules >= JOULES_PER_KWH / 100 else f"{joules:,.0f} J"


def cost(recipe: Mapping[str, Any], budget: Mapping[str, Any]) -> str | None:
    """What SD-Zero's training cost by the prices in the recipe's section `cost`; None without prices.

    Devices times time where the ledger has that, else time, of one device.
    """
    prices = CostSettings.model_validate(recipe.get("cost") or {})
    if prices == CostSettings():
        return None
    total = prices.of(budget.get("device_seconds", budget["seconds"]), budget["joules"])
    if total is None:
        return "not known: energy has a price and was not measured"
    return f"{total:,.4g} (in the currency of the recipe's prices)"


def planned_rows(plan: Mapping[str, Any], budget: Mapping[str, Any]) -> list[list[str]]:
    """Plan against actual: a row a stage and count that the plan has, with the ratio of the two.

    `plan` is the JSON of `sdzero plan --json`: an object with `stages`, a list of objects with `name` and
    counts by the names of the ledger. A stage that was not run stands there without numbers.
    """
    rows = []
    for stage in plan.get("stages", []):
        spent = budget["by_stage"].get(stage["name"])
        for count in COUNTS:
            planned = stage.get(count)
            if planned is None or (not planned and not (spent or {}).get(count)):
                continue
            actual = None if spent is None else spent[count]
            ratio = f"{actual / planned:.2f}" if actual is not None and planned else ""
            rows.append(
                [
                    stage["name"],
                    count.replace("_", " "),
                    _shown(planned),
                    "" if actual is None else _shown(actual),
                    ratio,
                ]
            )
    return rows


def _shown(value: float) -> str:
    return f"{value:,.1f}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"
