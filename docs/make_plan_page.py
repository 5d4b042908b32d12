"""Write the tables of sizes and devices in docs/plan.md from `sdzero.onprem`.

    python docs/make_plan_page.py

Every row of the sizes is what `sdzero plan` says of a recipe, a model and some devices.
"""

from pathlib import Path

from sdzero.onprem.hardware import DEVICES, hardware_named
from sdzero.onprem.plan import Plan, make_plan
from sdzero.onprem.plan_cost import kilowatt_hours
from sdzero.onprem.plan_tables import duration
from sdzero.recipe_io import load_recipe

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "plan.md"
MODELS = (
    ("qwen3-4b-math", "Qwen/Qwen3-4B-Instruct-2507"),
    ("olmo3-7b-math", "allenai/Olmo-3-7B-Instruct"),
    ("qwen3-4b-math", "Qwen/Qwen3-14B"),
    ("qwen3-4b-math", "Qwen/Qwen3-32B"),
)
"""Recipe and model; the recipe's other values stay."""
DEVICE, COUNTS = "H100-80GB", (1, 2, 4, 8)
GB = 1e9


def row(model: str, plan: Plan) -> str:
    """A row of the sizes."""
    hardware, name = plan.setting.hardware, model.rpartition("/")[2]
    needs = f"{plan.peak / GB:,.0f}"
    if plan.enough is None or plan.enough_peak is None or plan.enough_hours is None:
        return f"| {name} | {hardware.count} | {needs} | nothing is enough | | | |"
    turned = "<br>".join(f"`{switch}`" for switch in plan.enough) or "as it is"
    energy = kilowatt_hours(hardware, plan.enough_hours, plan.prices)
    took = duration(plan.enough_hours * 3600)
    return (
        f"| {name} | {hardware.count} | {needs} | {turned} | {plan.enough_peak / GB:.0f} | {took} |"
        f" {energy:,.0f} |"
    )


def sizes() -> str:
    """The models on 1 to 8 devices."""
    lines = [
        f"| model | x {DEVICE} | GB as it is | turned | then GB | time | kWh |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe, model in MODELS:
        settings = load_recipe(ROOT / "recipes" / f"{recipe}.yaml", [f"model.path={model}"])
        lines += [row(model, make_plan(settings, f"{count}x{DEVICE}")) for count in COUNTS]
    return "\n".join(lines)


def devices() -> str:
    """Every device that has a name."""
    lines = [
        "| device | GB | TFLOP/s in bfloat16 | in float32 | GB/s | W | W of the machine | source |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for device in DEVICES.values():
        assert hardware_named(device.name).device is device
        peaks = f"{device.peak / 1e12:g} | {device.peak_float32 / 1e12:g}"
        lines.append(
            f"| `{device.name}` | {device.memory / GB:g} | {peaks} | {device.bandwidth / GB:g} |"
            f" {device.watts:g} | {device.host_watts:g} | {device.source} |"
        )
    return "\n".join(lines)


def with_tables(text: str) -> str:
    """The page with both tables made anew."""
    for name, table in (("plan-sizes", sizes()), ("plan-devices", devices())):
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{PAGE} lacks {begin} or {end}")
        text = f"{before}{begin}\n{table}\n{end}{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
