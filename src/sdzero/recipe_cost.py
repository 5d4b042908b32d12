"""What devices and energy cost the user: the part `cost` of a recipe. Imports no torch."""

from typing import Self

from pydantic import Field, model_validator

from sdzero.recipe_base import Settings

JOULES_PER_KWH = 3.6e6


class CostSettings(Settings):
    """Prices, in whatever currency, for what a comparison shows beside device-hours. None is built in.

    Energy is what was measured, times `pue`: what the building takes for each joule of its machines (power
    usage effectiveness).
    """

    price_per_device_hour: float | None = Field(default=None, ge=0)
    energy_price_per_kwh: float | None = Field(default=None, ge=0)
    pue: float = Field(default=1.0, ge=1)

    @model_validator(mode="after")
    def _pue_needs_a_price(self) -> Self:
        if self.pue != 1.0 and self.energy_price_per_kwh is None:
            raise ValueError("pue multiplies the price of energy: set energy_price_per_kwh")
        return self

    def of(self, device_seconds: float, joules: float | None) -> float | None:
        """What this costs; None without a price, or if energy has one and was not measured."""
        if self.price_per_device_hour is None and self.energy_price_per_kwh is None:
            return None
        cost = (self.price_per_device_hour or 0.0) * device_seconds / 3600.0
        if self.energy_price_per_kwh is None:
            return cost
        return (
            None if joules is None else cost + self.energy_price_per_kwh * self.pue * joules / JOULES_PER_KWH
        )
