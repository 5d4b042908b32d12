"""Energy and cost of device-hours: rented by the hour, or owned."""

from dataclasses import dataclass
from typing import Any

from sdzero.errors import UserError
from sdzero.onprem.hardware import Hardware

HOURS_A_YEAR = 8766
PUE = 1.56
"""Energy of a site over that of its machines: the mean of Uptime Institute's survey of 2024."""
POWER_SHARE = 0.8
"""Of what device and machine take at most, on average over a run: assumed."""


@dataclass(frozen=True)
class Prices:
    """What the user pays, in one currency. `hardware`: for all of `--hardware` together, with its machine;
    used over `years`, for `utilisation` of the time. `energy`: a kWh."""

    gpu_hour: float | None = None
    hardware: float | None = None
    years: float = 4.0
    utilisation: float = 0.5
    energy: float | None = None
    pue: float = PUE
    power_share: float = POWER_SHARE

    def __post_init__(self) -> None:
        if self.hardware is not None and self.energy is None:
            raise UserError(
                "owned hardware costs energy too, and its price is not known",
                "--energy-price",
                "give the price of a kWh (0 if it is not to be counted)",
            )


def kilowatt_hours(hardware: Hardware, hours: float, prices: Prices) -> float:
    """Of all devices and their machine, in so many hours by the clock, the site's share included."""
    device = hardware.device
    watts = hardware.count * (device.watts + device.host_watts)
    return watts * prices.power_share * prices.pue * hours / 1000


def owned_hour(hardware: Hardware, prices: Prices) -> float:
    """An hour of all the hardware, owned: its share of the price, and energy. Raises ValueError without a
    price."""
    if prices.hardware is None or prices.energy is None:
        raise ValueError("no price of the hardware")
    used = prices.years * HOURS_A_YEAR * prices.utilisation
    return prices.hardware / used + kilowatt_hours(hardware, 1.0, prices) * prices.energy


def break_even(hardware: Hardware, prices: Prices) -> float | None:
    """From which utilisation on owning is cheaper than renting; None if it never is, or prices are
    missing."""
    if prices.hardware is None or prices.energy is None or prices.gpu_hour is None:
        return None
    left = hardware.count * prices.gpu_hour - kilowatt_hours(hardware, 1.0, prices) * prices.energy
    if left <= 0:
        return None
    share = prices.hardware / (prices.years * HOURS_A_YEAR * left)
    return share if share <= 1 else None


def costs(hardware: Hardware, hours: float, prices: Prices) -> dict[str, Any]:
    """Of so many hours by the clock: device-hours, kWh, and, as far as prices are known, `rented` and
    `owned`."""
    device_hours = hours * hardware.count
    return {
        "device_hours": device_hours,
        "kwh": kilowatt_hours(hardware, hours, prices),
        "rented": None if prices.gpu_hour is None else device_hours * prices.gpu_hour,
        "owned": None if prices.hardware is None else hours * owned_hour(hardware, prices),
    }
