"""A plan for people: the verdict, memory by part, time, energy and cost, and what all of it rests on."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from sdzero.onprem.hardware import GB
from sdzero.onprem.plan import Plan, assumptions
from sdzero.onprem.plan_cost import break_even
from sdzero.onprem.plan_memory import Moment, total
from sdzero.onprem.spent import COUNTS

PARTS = {
    "weights": "weights",
    "teacher": "teacher",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "exchange": "exchange",
    "activations": "activations",
    "loss": "loss",
    "working": "working",
    "cache": "key-value cache",
    "sampler": "sampler",
    "vllm": "vLLM",
    "context": "context",
}
"""Parts of the memory in the order of the table, and what they are called there."""
METHODS = {"sdzero": "SD-Zero", "rft": "RFT", "grpo": "GRPO", "sdft": "SDFT"}
NO_FIGURE = "-"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def verdict_lines(plan: Plan) -> Iterator[str]:
    """Whether it fits, and what to turn if it does not."""
    where = plan.setting.hardware.name + (
        f" with {plan.setting.parallel}" if plan.setting.devices > 1 else ""
    )
    needs = f"{plan.peak / GB:.1f} GB of the {plan.room / GB:.1f} GB of each device"
    if plan.fits:
        yield f"{plan.setting.recipe.name} fits {where}: it needs {needs}"
        return
    yield f"{plan.setting.recipe.name} does not fit {where}: it needs {needs}"
    if plan.enough is None or plan.enough_peak is None or plan.enough_hours is None:
        yield "  none of the switches together is enough: take devices with more memory, or a smaller model"
    else:
        took = f"{duration(plan.enough_hours * 3600)} in place of {duration(plan.hours * 3600)}"
        yield f"  enough is: {' '.join(plan.enough)} ({plan.enough_peak / GB:.1f} GB, {took})"


def switches_table(plan: Plan) -> Table:
    """What each switch alone would save."""
    table = _table("each switch alone", "switch", "saves GB", "then needs GB", "fits")
    for switch in plan.switches:
        table.add_row(
            switch.text, f"{switch.saves / GB:.1f}", f"{switch.peak / GB:.1f}", "yes" if switch.fits else "no"
        )
    return table


def memory_table(plan: Plan) -> Table:
    """Each stage at its most demanding moment, part by part."""
    stages = [stage for stage in plan.stages if stage.memory is not None]
    columns = [f"{stage.work.name} ({stage.moment})" for stage in stages]
    table = _table("memory of each device, GB", "", *columns)
    memories: list[Moment] = [stage.memory for stage in stages if stage.memory is not None]
    for part, label in PARTS.items():
        if any(part in memory for memory in memories):
            table.add_row(label, *(gigabytes(memory.get(part, 0.0)) for memory in memories))
    table.add_row("together", *(gigabytes(total(memory)) for memory in memories))
    return table


def gigabytes(size: float) -> str:
    """Two digits behind the point below 10 GB; nothing for nothing."""
    if not size:
        return ""
    return f"{size / GB:.2f}" if size < 10 * GB else f"{size / GB:.1f}"


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever is short."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds else ""


def _money(cost: float | None) -> str:
    return NO_FIGURE if cost is None else f"{cost:,.2f}"


def time_table(plan: Plan) -> Table:
    """Each stage: what it samples and trains on, how long it takes, and what that costs."""
    table = _table(
        "time, energy and cost",
        *("stage", "responses", "sampled", "trained", "sampling", "training", "device-hours", "kWh"),
        *("rented", "owned"),
    )
    for stage in plan.stages:
        spent = plan.costs(stage.time.seconds)
        work, time = stage.work, stage.time
        table.add_row(
            work.name,
            f"{work.responses:,}" if work.responses else "",
            tokens(work.sampled_tokens),
            tokens(work.trained_tokens),
            duration(time.sampling),
            duration(time.training),
            *_spent(spent),
        )
    all_of_it = plan.costs(plan.hours * 3600)
    table.add_row("all", "", "", "", "", duration(plan.hours * 3600), *_spent(all_of_it))
    return table


def _spent(spent: dict[str, Any]) -> list[str]:
    figures = [f"{spent['device_hours']:,.2f}", f"{spent['kwh']:,.2f}"]
    return [*figures, _money(spent["rented"]), _money(spent["owned"])]


def tokens(count: float) -> str:
    """In thousands or millions."""
    if not count:
        return ""
    return f"{count / 1e6:,.1f}M" if count >= 1e6 else f"{count / 1e3:,.1f}K"


def methods_table(plan: Plan) -> Table:
    """SD-Zero's training beside that of the baselines."""
    budget = next(iter(plan.methods.values()))[0].responses
    table = _table(
        f"each method's training with {budget:,} responses",
        *("method", "responses", "sampling", "training", "device-hours", "kWh", "rented", "owned"),
    )
    for name, (work, time) in plan.methods.items():
        spent = plan.costs(time.seconds)
        table.add_row(
            METHODS[name],
            f"{work.responses:,}",
            duration(time.sampling),
            duration(time.training),
            *_spent(spent),
        )
    return table


def price_lines(plan: Plan) -> Iterator[str]:
    """What the prices mean."""
    prices, hardware = plan.prices, plan.setting.hardware
    if prices.gpu_hour is None and prices.hardware is None:
        owned = "--hardware-price and --energy-price (owned)"
        yield f"cost: give --price-per-gpu-hour (rented), or {owned}, in your currency"
        return
    if prices.hardware is not None and prices.gpu_hour is not None:
        share = break_even(hardware, prices)
        used = f"used {prices.utilisation:.0%} of {prices.years:g} years"
        if share is None:
            yield f"owning ({used}) is dearer than renting, however much it is used"
        else:
            yield f"owning ({used}) is cheaper than renting above a utilisation of {share:.0%}"


def assumption_lines(plan: Plan) -> list[str]:
    """Under a heading."""
    return ["assumptions:", *(f"  {line}" for line in assumptions(plan))]


def against_table(rows: Sequence[dict[str, Any]]) -> Table:
    """What was planned / what was spent."""
    names = {"sampled_tokens": "sampled", "trained_tokens": "trained", "teacher_tokens": "teacher"}
    table = _table(
        "planned / spent", "stage", *(names.get(count, count) for count in COUNTS), "ratio", "peak GB"
    )
    for row in rows:
        planned, spent = row["planned"], row["spent"]
        ratio = NO_FIGURE
        if planned and spent and planned["seconds"]:
            ratio = f"{spent['seconds'] / planned['seconds']:.2f}"
        table.add_row(
            row["stage"],
            *(_pair(count, planned, spent) for count in COUNTS),
            ratio,
            f"{_peak(row['planned_peak_bytes'])} / {_peak(row['peak_bytes'])}",
        )
    return table


def _pair(count: str, planned: dict[str, Any] | None, spent: dict[str, Any] | None) -> str:
    return f"{_count(count, planned)} / {_count(count, spent)}"


def _count(name: str, counts: dict[str, Any] | None) -> str:
    if counts is None:
        return NO_FIGURE
    value = counts[name]
    if name == "seconds":
        return duration(value) or "0 s"
    return f"{value:,.0f}" if name == "responses" else tokens(value) or "0"


def _peak(size: float | None) -> str:
    return NO_FIGURE if size is None else gigabytes(size)
