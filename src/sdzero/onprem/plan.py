"""`sdzero plan`: memory, time, energy and cost of a recipe on some hardware. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sdzero.errors import UserError
from sdzero.onprem.calibration import Calibration, read_calibration
from sdzero.onprem.hardware import hardware_named
from sdzero.onprem.model_shape import shape_of
from sdzero.onprem.plan_cost import Prices, break_even, costs
from sdzero.onprem.plan_memory import Moment, peak_moment, stage_moments, total
from sdzero.onprem.plan_sampling import sampled_at_once
from sdzero.onprem.plan_setting import Parallel, Setting
from sdzero.onprem.plan_switches import Switch, enough, peak_of, room_of, switches
from sdzero.onprem.plan_time import Efficiency, StageTime, assumed_efficiency, stage_time
from sdzero.onprem.plan_time import peak_of as operations_a_second
from sdzero.onprem.plan_tokens import (
    Lengths,
    StageWork,
    assumed_lengths,
    methods_of,
    stages_of,
    with_given,
)
from sdzero.recipe import Recipe

SCHEMA = 1


@dataclass(frozen=True)
class PlannedStage:
    """One stage: its work, its time, and, where memory is planned, its most demanding moment."""

    work: StageWork
    time: StageTime
    moment: str | None = None
    memory: Moment | None = None


@dataclass(frozen=True)
class Plan:
    """All that is planned. `enough` are the switches that together make it fit, None if none do;
    `enough_peak` and `enough_hours` are the peak, in bytes, and the time with them."""

    setting: Setting
    lengths: Lengths
    efficiency: Efficiency
    prices: Prices
    stages: tuple[PlannedStage, ...]
    methods: dict[str, tuple[StageWork, StageTime]]
    switches: tuple[Switch, ...]
    enough: tuple[str, ...] | None
    enough_peak: float | None
    enough_hours: float | None

    @property
    def peak(self) -> float:
        """Bytes that one device needs at most."""
        return max(total(stage.memory) for stage in self.stages if stage.memory is not None)

    @property
    def room(self) -> float:
        """Bytes that it has."""
        return room_of(self.setting)

    @property
    def fits(self) -> bool:
        """The verdict."""
        return self.peak <= self.room

    @property
    def hours(self) -> float:
        """By the clock, of all stages."""
        return sum(stage.time.seconds for stage in self.stages) / 3600

    def costs(self, seconds: float) -> dict[str, Any]:
        """Device-hours, kWh and costs of so many seconds by the clock."""
        return costs(self.setting.hardware, seconds / 3600, self.prices)


def make_plan(
    recipe: Recipe,
    hardware: str,
    *,
    parallel: Parallel = "ddp",
    model_config: Path | None = None,
    mean_tokens: Sequence[str] = (),
    prompt_tokens: float | None = None,
    right: float | None = None,
    calibration: Path | None = None,
    measured_on: str | None = None,
    prices: Prices | None = None,
) -> Plan:
    """Plan a run. Raises UserError for a model or hardware that is not known, and for what does not
    divide."""
    if parallel == "fsdp2" and recipe.lora is not None:
        raise UserError(
            "adapters are not sharded", "--parallel", "use ddp: an adapter's gradients and states are small"
        )
    devices, shape = hardware_named(hardware), shape_of(recipe.model.path, model_config)
    measured: Calibration | None = None
    if calibration is not None:
        measured = read_calibration(calibration, shape, hardware_named(measured_on or hardware))
    lengths = assumed_lengths(recipe)
    if measured is not None:
        lengths = measured.apply(lengths)
    lengths = with_given(lengths, mean_tokens, prompt_tokens, right)
    setting = Setting(recipe, shape, devices, parallel, lengths.prompt)
    efficiency = assumed_efficiency(setting)
    if measured is not None:
        efficiency = measured.efficiency(efficiency)
    return plan_of(setting, lengths, efficiency, prices or Prices())


def plan_of(setting: Setting, lengths: Lengths, efficiency: Efficiency, prices: Prices) -> Plan:
    """The plan of a setting whose lengths and efficiency are known."""
    moments = stage_moments(setting)
    stages = []
    for work in stages_of(setting.recipe, lengths):
        own = moments.get(work.name)
        moment, memory = (None, None) if own is None else peak_moment(own)
        stages.append(PlannedStage(work, stage_time(setting, work, efficiency), moment, memory))
    methods = {}
    for name, works in methods_of(setting.recipe, lengths).items():
        times = [stage_time(setting, work, efficiency) for work in works]
        whole = StageTime(sum(time.sampling for time in times), sum(time.training for time in times))
        samples = tuple(sample for work in works for sample in work.samples)
        methods[name] = StageWork(name, samples, tuple(train for w in works for train in w.trains)), whole

    def hours(other: Setting) -> float:
        speed = efficiency
        if other.recipe.rollout.engine != setting.recipe.rollout.engine:
            speed = replace(assumed_efficiency(other), products=efficiency.products)
        works = stages_of(other.recipe, lengths)
        return sum(stage_time(other, work, speed).seconds for work in works) / 3600

    found = enough(setting, hours)
    return Plan(
        setting,
        lengths,
        efficiency,
        prices,
        tuple(stages),
        methods,
        () if found is not None and not found[0] else tuple(switches(setting)),
        None if found is None else tuple(found[0]),
        None if found is None else peak_of(found[1]),
        None if found is None else hours(found[1]),
    )


def assumptions(plan: Plan) -> list[str]:
    """What the plan rests on, a sentence each."""
    setting, recipe, own = plan.setting, plan.setting.recipe, plan.lengths
    device = setting.hardware.device
    rows, _, prompt, new = sampled_at_once(setting, "student")
    speed = f"{operations_a_second(setting) / 1e12:g} TFLOP/s in {recipe.model.dtype}"
    lines = [
        f"model: {setting.shape.name}, {setting.shape.parameters:,} parameters ({setting.shape.source})",
        f"device: {device.memory / 1e9:g} GB, {speed}, {device.bandwidth / 1e9:g} GB/s,"
        f" {device.watts:g} W and {device.host_watts:g} W of the machine ({device.source})",
        f"speed: {plan.efficiency.source}",
        f"lengths: prompt {own.prompt:.0f}, base {own.base:.0f}, revision {own.revised:.0f}, student"
        f" {own.student:.0f}, SRT {own.srt:.0f}, SD-Zero {own.sdzero:.0f} tokens; right {own.right:.0%}"
        f" ({own.source})",
        "memory: every response as long as the recipe allows; time: means",
        f"energy: {plan.prices.power_share:.0%} of these watts, PUE {plan.prices.pue:g}",
    ]
    if setting.kind == "cpu":
        lines.append(
            "memory of a CPU: what is held; a run keeps freed memory, whose gaps took up to as much again"
            " (docs/plan.md)"
        )
    if recipe.rollout.engine == "transformers":
        lines.append(
            f"sampling: {rows} rows at one time, prompts of {prompt:.0f} and responses of up to {new} tokens"
        )
    return lines


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan for a script. Bytes, seconds, kWh; costs in the currency of the prices."""
    setting = plan.setting
    return {
        "schema": SCHEMA,
        "recipe": setting.recipe.name,
        "model": {"name": setting.shape.name, "parameters": setting.shape.parameters},
        "hardware": asdict(setting.hardware.device) | {"count": setting.devices},
        "parallel": setting.parallel,
        "fits": plan.fits,
        "peak_bytes": plan.peak,
        "room_bytes": plan.room,
        "switches": [asdict(switch) for switch in plan.switches],
        "enough": None if plan.enough is None else list(plan.enough),
        "enough_peak_bytes": plan.enough_peak,
        "enough_hours": plan.enough_hours,
        "stages": [
            {
                "name": stage.work.name,
                **work_json(stage.work, stage.time),
                **plan.costs(stage.time.seconds),
                "moment": stage.moment,
                "memory_bytes": stage.memory,
            }
            for stage in plan.stages
        ],
        "total": {"hours": plan.hours, **plan.costs(plan.hours * 3600)},
        "methods": {
            name: {**work_json(work, time), **plan.costs(time.seconds)}
            for name, (work, time) in plan.methods.items()
        },
        "prices": asdict(plan.prices),
        "break_even_utilisation": break_even(setting.hardware, plan.prices),
        "assumptions": assumptions(plan),
    }


def work_json(work: StageWork, time: StageTime) -> dict[str, Any]:
    """Counts by the names of the ledger, and seconds."""
    return {
        "responses": work.responses,
        "sampled_tokens": math.ceil(work.sampled_tokens),
        "trained_tokens": math.ceil(work.trained_tokens),
        "teacher_tokens": math.ceil(work.teacher_tokens),
        "sampling_seconds": time.sampling,
        "training_seconds": time.training,
        "seconds": time.seconds,
    }
