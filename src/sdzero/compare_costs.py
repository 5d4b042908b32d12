"""What a comparison's methods gave for what they took: points per device-hour and per 1,000 responses,
measured energy, and the cost by the user's prices.

A point is a percentage point of the mean score above the base model's. Costs are means over seeds and are
those of `Method.stages`: the training, not the scoring and not the search of learning rates.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sdzero.energy import energy_text, sources_of
from sdzero.recipe_cost import CostSettings


def returns(
    score: float, base: float | None, costs: Sequence[Mapping[str, Any]], prices: CostSettings
) -> dict[str, Any]:
    """A method's part of `compare.json`.

    `score` and `base` are fractions in [0, 1], `costs` what each seed took. None stands for what is not
    known: without the base model's score, for nothing spent, and for energy that was not measured.
    """
    device_seconds = _mean([one["device_seconds"] for one in costs])
    measured = [one["joules"] for one in costs]
    joules = None if None in measured else _mean(measured)
    points = None if base is None else 100.0 * (score - base)
    return {
        "device_seconds": device_seconds,
        "joules": joules,
        "points_per_device_hour": _ratio(points, device_seconds / 3600.0),
        "points_per_1000_responses": _ratio(points, _mean([one["responses"] for one in costs]) / 1000.0),
        "cost": prices.of(device_seconds, joules),
    }


def energy_of(costs: Sequence[Mapping[str, Any]]) -> str:
    """What the energy of these costs was measured by; `none` unless that of all of them was."""
    return sources_of(one.get("energy") for one in costs)


def _ratio(points: float | None, amount: float) -> float | None:
    return None if points is None or not amount else points / amount


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ---- for people ----

COLUMNS = (
    ("points_per_device_hour", "points/h", 1.0, ",.1f"),
    ("points_per_1000_responses", "points/1,000", 1.0, ".2f"),
    ("joules", "kJ", 1e-3, ",.2f"),
    ("cost", "cost", 1.0, ",.4g"),
)
"""Key, head, factor and form of each column; one is shown if some method has a value."""


def cost_columns(results: Mapping[str, Any]) -> list[str]:
    """The heads of the columns that a comparison has figures for."""
    return [head for _, head, _, _ in _shown(results)]


def cost_cells(results: Mapping[str, Any], name: str) -> list[str]:
    """A method's cells in these columns."""
    own = results["methods"][name]
    return [
        "" if own.get(key) is None else format(own[key] * factor, form)
        for key, _, factor, form in _shown(results)
    ]


def _shown(results: Mapping[str, Any]) -> list[tuple[str, str, float, str]]:
    """Of comparisons that were kept before there were such figures: none."""
    return [one for one in COLUMNS if any(own.get(one[0]) for own in results["methods"].values())]


def cost_notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know of these columns."""
    if not _shown(results):
        return []
    measured = results["energy"]
    lines = [
        "Points are percentage points above the base model, per hour of one device (a GPU, or a process on"
        " CPUs) and per 1,000 responses: those of training, without scoring and the search of learning rates."
        f" {energy_text(measured).capitalize()}."
    ]
    prices = CostSettings(**results["prices"])
    if prices != CostSettings():
        hour, energy = prices.price_per_device_hour, prices.energy_price_per_kwh
        given = [
            *([] if hour is None else [f"{hour:g} per device-hour"]),
            *([] if energy is None else [f"{energy:g} per kWh, times a PUE of {prices.pue:g}"]),
        ]
        lines.append(f"Cost: {' and '.join(given)}, as the recipe says.")
    return lines
