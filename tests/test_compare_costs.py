"""What a comparison's methods gave for what they took, worked by hand."""

from typing import Any

import pytest
from pydantic import ValidationError

from sdzero.compare_costs import cost_cells, cost_columns, cost_notes, energy_of, returns
from sdzero.recipe_cost import CostSettings


def cost(responses: int, device_seconds: float, joules: float | None = None) -> dict[str, Any]:
    return {"responses": responses, "device_seconds": device_seconds, "joules": joules}


def test_points_are_per_hour_of_a_device_and_per_thousand_responses() -> None:
    found = returns(0.65, 0.5, [cost(2_000, 1_800), cost(4_000, 5_400)], CostSettings())
    assert found["device_seconds"] == 3_600
    assert found["points_per_device_hour"] == pytest.approx(15.0)
    assert found["points_per_1000_responses"] == pytest.approx(5.0)
    assert found["joules"] is None
    assert found["cost"] is None, "no price is built in"


def test_what_is_not_known_is_none() -> None:
    nothing = returns(0.5, 0.5, [cost(0, 0.0, 0.0)], CostSettings())
    assert nothing["points_per_device_hour"] is None
    assert nothing["points_per_1000_responses"] is None
    assert returns(0.5, None, [cost(1, 1.0)], CostSettings())["points_per_device_hour"] is None
    assert returns(0.5, 0.1, [cost(1, 1.0, 4.0), cost(1, 1.0)], CostSettings())["joules"] is None


def test_costs_are_those_of_the_users_prices() -> None:
    rented = CostSettings(price_per_device_hour=2.5)
    assert rented.of(7_200, None) == pytest.approx(5.0)
    owned = CostSettings(energy_price_per_kwh=0.3, pue=1.5)
    assert owned.of(7_200, 7.2e6) == pytest.approx(2 * 1.5 * 0.3)
    assert owned.of(7_200, None) is None, "energy that was not measured has no price"
    both = CostSettings(price_per_device_hour=1.0, energy_price_per_kwh=0.5)
    assert both.of(3_600, 3.6e6) == pytest.approx(1.5)
    assert both.of(3_600, None) is None, "half a sum is none"
    with pytest.raises(ValidationError, match="pue multiplies the price of energy"):
        CostSettings(pue=1.2)


def results_of(prices: CostSettings, joules: float | None) -> dict[str, Any]:
    return {
        "methods": {
            "base": returns(0.5, 0.5, [cost(0, 0.0, 0.0)], prices),
            "rft": returns(0.6, 0.5, [cost(1_000, 3_600, joules)], prices),
        },
        "prices": prices.model_dump(),
        "energy": "none" if joules is None else "rapl",
    }


def test_the_table_shows_what_there_is() -> None:
    plain = results_of(CostSettings(), None)
    assert cost_columns(plain) == ["points/h", "points/1,000"]
    assert cost_cells(plain, "base") == ["", ""]
    assert cost_cells(plain, "rft") == ["10.0", "10.00"]
    assert "Energy: not measured." in " ".join(cost_notes(plain))
    priced = results_of(CostSettings(price_per_device_hour=2.0), 5_500.0)
    assert cost_columns(priced)[2:] == ["kJ", "cost"]
    assert cost_cells(priced, "rft")[2:] == ["5.50", "2"]
    notes = " ".join(cost_notes(priced))
    assert "Energy: measured by rapl." in notes
    assert "2 per device-hour" in notes
    assert "kWh" not in notes


def test_a_comparison_that_was_kept_before_has_no_such_columns() -> None:
    old = {"methods": {"rft": {"mean": 0.5, "seconds": 3.0}}}
    assert (cost_columns(old), cost_cells(old, "rft"), cost_notes(old)) == ([], [], [])


def test_energy_is_told_only_if_all_seeds_measured_it() -> None:
    assert energy_of([{"energy": "rapl"}, {"energy": "nvml+rapl"}]) == "nvml+rapl, rapl"
    assert energy_of([{"energy": "rapl"}, {}]) == "none"
