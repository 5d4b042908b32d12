"""What to turn where a run does not fit: each switch is tried, by planning with it."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from sdzero.onprem.plan_memory import peak_moment, stage_moments, total
from sdzero.onprem.plan_setting import Setting
from sdzero.recipe import Recipe

AT_MOST_TOGETHER = 4
TRAINED = ("srt", "distill", "rft")

Turn = Callable[[Setting], tuple[str, Setting] | None]
"""Gives what to write, and the setting with it; None where there is nothing to turn."""


@dataclass(frozen=True)
class Switch:
    """What to write, the peak with it, and what that saves, in bytes on each device."""

    text: str
    peak: float
    saves: float
    fits: bool


def peak_of(setting: Setting) -> float:
    """The most that any stage takes of a device."""
    return max(total(peak_moment(moments)[1]) for moments in stage_moments(setting).values())


def room_of(setting: Setting) -> float:
    """What there is of memory for one process."""
    device = setting.hardware.device
    return device.memory / (setting.devices if device.kind == "cpu" else 1)


def fits(setting: Setting) -> bool:
    """Whether every stage fits."""
    return peak_of(setting) <= room_of(setting)


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe | None:
    """The recipe with other values of dotted keys; None if it would not be a recipe."""
    values = recipe.model_dump(mode="json")
    for key, value in changes.items():
        section, *names = key.split(".")
        if not names:
            values[section] = value
            continue
        inner = values[section] = dict(values[section] or {})
        inner[names[0]] = value
    try:
        return Recipe.model_validate(values)
    except ValidationError:
        return None


def _turned(setting: Setting, changes: Mapping[str, Any], text: str | None = None) -> Any:
    recipe = changed(setting.recipe, changes) if changes else None
    if recipe is None:
        return None
    shown = text or " ".join(f"{key}={str(value).lower()}" for key, value in changes.items())
    return shown, setting.with_recipe(recipe)


def _short_numbers(setting: Setting) -> Any:
    return _turned(setting, {"model.dtype": "bfloat16"} if setting.size > 2 else {})


def _checkpointing(setting: Setting) -> Any:
    own = setting.recipe.model.gradient_checkpointing
    return _turned(setting, {} if own else {"model.gradient_checkpointing": True})


def _micro_batches(setting: Setting) -> Any:
    large = [name for name in TRAINED if getattr(setting.recipe, name).micro_batch_size > 1]
    return _turned(setting, {f"{name}.micro_batch_size": 1 for name in large})


def _sharding(setting: Setting) -> Any:
    if setting.devices == 1 or setting.parallel == "fsdp2" or setting.recipe.lora is not None:
        return None
    return "--parallel fsdp2", replace(setting, parallel="fsdp2")


def _teacher_elsewhere(setting: Setting) -> Any:
    if setting.teacher_placement != "device":
        return None
    placement = "sharded" if setting.parallel == "fsdp2" else "cpu"
    return _turned(setting, {"distill.teacher_placement": placement})


def _eight_bits(setting: Setting) -> Any:
    whole = [name for name in TRAINED if getattr(setting.recipe, name).optimizer == "adamw"]
    return _turned(setting, {f"{name}.optimizer": "adamw_8bit" for name in whole})


def _adapters(setting: Setting) -> Any:
    if setting.recipe.lora is not None or setting.parallel == "fsdp2":
        return None
    return _turned(setting, {"lora": {"rank": 16, "alpha": 32}}, "lora.rank=16 lora.alpha=32")


def _four_bits(setting: Setting) -> Any:
    own = setting.recipe
    if own.model.quantization is not None or setting.parallel == "fsdp2":
        return None
    lora = (own.lora.model_dump(mode="json") if own.lora else {"rank": 16, "alpha": 32}) | {"keep": "auto"}
    text = "model.quantization=4bit" + ("" if own.lora else " lora.rank=16 lora.alpha=32")
    return _turned(setting, {"model.quantization": "4bit", "lora": lora}, text)


def _shorter(setting: Setting) -> Any:
    own = setting.recipe
    halves = {
        f"{name}.max_new_tokens": max(1, getattr(own, name).max_new_tokens // 2)
        for name in ("collect", "distill", "evaluate")
    }
    return _turned(setting, halves)


def _vllm(setting: Setting) -> Any:
    """vLLM on the same devices, asleep while they train: in this process, or with several a server with a
    replica on each. It has what is left of the device while phase 2 samples."""
    own, count = setting.recipe.rollout, setting.devices
    if setting.kind != "cuda" or own.engine == "vllm":
        return None
    sampling = stage_moments(setting)["distill"]["sampling"]
    others = sum(size for part, size in sampling.items() if part not in ("cache", "working", "sampler"))
    share = math.floor(20 * (1 - others / room_of(setting))) / 20
    if share * room_of(setting) < 1.2 * setting.weights:
        return None
    values: dict[str, Any] = {"sleep": True, "gpu_memory_utilization": share}
    if count > 1:
        values = {"mode": "server", "data_parallel_size": count, **values}
    shown = " ".join(f"rollout.vllm.{key}={str(value).lower()}" for key, value in values.items())
    changes = {"rollout": {"engine": "vllm", "batch_size": own.batch_size, "vllm": values}}
    return _turned(setting, changes, f"rollout.engine=vllm {shown}")


def _fewer_rows(setting: Setting) -> Any:
    """Half as many responses at one time, and half of that, until sampling fits."""
    rows, found = setting.recipe.rollout.batch_size, None
    while rows > 1:
        rows = max(1, rows // 2)
        found = _turned(setting, {"rollout.batch_size": rows})
        if found is None or _sampling_fits(found[1]):
            break
    return found


def _sampling_fits(setting: Setting) -> bool:
    moments = (own.items() for own in stage_moments(setting).values())
    sampling = [
        total(parts) for name, parts in itertools.chain(*moments) if "cache" in parts or name == "sampling"
    ]
    return max(sampling, default=0.0) <= room_of(setting)


TURNS: dict[Turn, float] = {
    _checkpointing: 1.0,
    _micro_batches: 1.0,
    _sharding: 1.0,
    _teacher_elsewhere: 1.0,
    _short_numbers: 1.5,
    _eight_bits: 1.2,
    _adapters: 1.5,
    _four_bits: 2.0,
    _shorter: 4.0,
    _vllm: 1.0,
    _fewer_rows: 1.0,
}
"""In the order in which they are turned: the number of rows comes last, because it fits itself to the rest.
The factor is on the time that a run takes with it: a switch that changes what is trained has to save that."""


def switches(setting: Setting) -> list[Switch]:
    """What each switch alone would save; those that save nothing are left out."""
    before, found = peak_of(setting), []
    for turn in TURNS:
        turned = turn(setting)
        if turned is None:
            continue
        text, other = turned
        peak = peak_of(other)
        if peak < before:
            found.append(Switch(text, peak, before - peak, peak <= room_of(other)))
    return sorted(found, key=lambda switch: -switch.saves)


def enough(setting: Setting, hours: Callable[[Setting], float]) -> tuple[list[str], Setting] | None:
    """The switches that together make the run fit, and the setting with them: the fewest, or one more if it
    is a tenth faster; of equally many the fastest (see `TURNS`). None if none do."""
    if fits(setting):
        return [], setting
    turned: dict[tuple[Turn, ...], tuple[list[str], Setting] | None] = {(): ([], setting)}
    best: tuple[float, tuple[list[str], Setting]] | None = None
    for count in range(1, AT_MOST_TOGETHER + 1):
        found = []
        for chosen in itertools.combinations(TURNS, count):
            own = turned[chosen] = _turned_on(turned[chosen[:-1]], chosen[-1])
            if own is not None and fits(own[1]):
                found.append((hours(own[1]) * math.prod(TURNS[turn] for turn in chosen), own))
        fastest = min(found, key=lambda one: one[0], default=None)
        if best is not None:
            return fastest[1] if fastest is not None and fastest[0] < 0.9 * best[0] else best[1]
        best = fastest
    return None if best is None else best[1]


def _turned_on(before: tuple[list[str], Setting] | None, turn: Turn) -> tuple[list[str], Setting] | None:
    """One switch more; None if there is nothing to turn."""
    own = None if before is None else turn(before[1])
    return None if before is None or own is None else ([*before[0], own[0]], own[1])
