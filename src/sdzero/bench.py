"""`sdzero bench`: a few steps of phase 2 on the user's own model, data and machine, for a plan.

It is a run, in a folder that is removed, of the recipe's phase 2 with few questions: its ledger is read as
that of any run is (`sdzero.onprem.calibration`).
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sdzero.onprem.calibration import Calibration, of_run
from sdzero.onprem.hardware import hardware_named
from sdzero.onprem.model_shape import shape_of
from sdzero.onprem.spent import Spent, read_run
from sdzero.pipeline import open_run
from sdzero.recipe import Recipe

FIRST = ("distill/rollouts/step-000000.jsonl", "update-000001")
"""The units of the first step, in which kernels are chosen and memory is taken; it is not counted."""


def bench_recipe(recipe: Recipe, steps: int, questions: int | None) -> Recipe:
    """Phase 2 of the recipe, from its base model, for so many steps of so many questions."""
    own = recipe.distill
    size = own.batch_size if questions is None else questions
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"n1": 1, "n2": steps * size, "tuning": 0, "test": 1}),
            "labels": recipe.labels.model_copy(update={"source": "reference"}),
            "distill": own.model_copy(
                update={
                    "batch_size": size,
                    "micro_batch_size": own.micro_batch_of(size),
                    "epochs": 1,
                    "sync": "never",
                    "sync_every": None,
                    "evaluate_every": None,
                    "early_stop_patience": None,
                    "rehearsal_weight": 0.0,
                    "rehearsal_traces": None,
                    "checkpoint_every": steps,
                }
            ),
            "rft": recipe.rft.model_copy(update={"enabled": False}),
            "alarms": recipe.alarms.model_copy(update={"enabled": False}),
            "suite": recipe.suite.model_copy(update={"name": None}),
        }
    )


def measure(
    recipe: Recipe, hardware: str, steps: int, questions: int | None, report: Callable[[str], None]
) -> Calibration:
    """Make the steps and say what they show. Raises UserError for hardware that is not known, and what a run
    raises."""
    devices = hardware_named(hardware)
    small = bench_recipe(recipe, steps, questions)
    with tempfile.TemporaryDirectory(prefix="sdzero-bench-") as place:
        folder = Path(place) / "run"
        with open_run(small, folder, report, lambda part, done, total: None) as stages:
            stages.distill(start=recipe.model.path)
        spent = read_run(folder)
    shape = shape_of(recipe.model.path)
    found = of_run(without_first(spent), shape, devices, f"`sdzero bench` with {recipe.name}")
    for label, value in (
        ("share of the peak in training", found.products),
        ("time of sampling over what is assumed", found.decoding),
        ("tokens sampled a second and device", found.tokens_per_second),
    ):
        report(f"{label}: {'not measured' if value is None else f'{value:.3g}'}")
    return replace(found, model=recipe.model.path)


def without_first(spent: Spent) -> Spent:
    """The run without its first step."""
    units = {place: counts for place, counts in spent.units.items() if place[1] not in FIRST}
    return replace(spent, units=units)
