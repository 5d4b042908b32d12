"""Assumptions replaced by what was measured: of `sdzero bench`, or of a run on the same devices."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from sdzero.errors import UserError
from sdzero.onprem.hardware import Hardware
from sdzero.onprem.model_shape import ModelShape
from sdzero.onprem.plan_setting import Setting
from sdzero.onprem.plan_time import (
    Efficiency,
    assumed_efficiency,
    peak_of,
    sampling_seconds,
    training_operations,
)
from sdzero.onprem.plan_tokens import PHRASE_TOKENS, Lengths, assumed_lengths, distill
from sdzero.onprem.spent import Spent, read_run

SCHEMA = 1

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
LengthName = Annotated[str, Field(pattern="^(prompt|base|revised|student|srt|sdzero)$")]
"""The mean tokens of `Lengths` that can be measured."""


@dataclass(frozen=True)
class Calibration:
    """What was measured; None where it was not.

    `products`: share of the peak that training reached, recomputing counted; `decoding`: measured over
    assumed time of sampling; both in relation to `hardware`. `tokens_per_second`: sampled by one device.
    `lengths`: mean tokens, by the names of `Lengths`. `right`: share of right revisions.
    """

    model: str
    hardware: str
    engine: str
    products: Positive | None
    decoding: Positive | None
    tokens_per_second: Positive | None
    lengths: dict[LengthName, Positive]
    right: Annotated[float, Field(ge=0, le=1)] | None
    source: str

    def to_json(self) -> str:
        """As `calibration.json` has it."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n"

    def efficiency(self, assumed: Efficiency) -> Efficiency:
        """What is reached, as far as it was measured."""
        measured = [name for name in ("products", "decoding") if getattr(self, name) is not None]
        if not measured:
            return assumed
        words = {"products": "the share of the peak", "decoding": "the time of sampling"}
        told = " and ".join(words[name] for name in measured)
        return replace(
            assumed,
            products=self.products if self.products is not None else assumed.products,
            decoding=self.decoding if self.decoding is not None else assumed.decoding,
            source=f"measured by {self.source} on {self.hardware}: {told}; else {assumed.source}",
        )

    def apply(self, lengths: Lengths) -> Lengths:
        """Lengths as measured, where they were."""
        changed = dict(self.lengths) | ({} if self.right is None else {"right": self.right})
        if not changed:
            return lengths
        others = "" if len(changed) > 6 else f"; the others {lengths.source}"
        return replace(lengths, **changed, source=f"measured by {self.source} ({', '.join(changed)}){others}")


def read_calibration(path: Path, shape: ModelShape, measured_on: Hardware) -> Calibration:
    """From a file of `sdzero bench`, or from a run's folder, whose model had this shape and which ran on
    `measured_on`. Raises UserError for anything else."""
    if path.is_dir():
        spent = read_run(path)
        if measured_on.device.kind != "cpu" and ran_on_cpu(spent):
            raise UserError(
                f"this run was made on a CPU, and is taken as measured on {measured_on.name}",
                str(path),
                "say what it ran on: --measured-on cpu",
            )
        return of_run(spent, shape, measured_on, f"the run in {path}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        return TypeAdapter(Calibration).validate_python(asdict(Calibration(**values)))
    except FileNotFoundError:
        raise UserError(
            "there is no such calibration", str(path), "write one: sdzero bench RECIPE --hardware ..."
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            "this is no calibration", str(path), "name a file that `sdzero bench` wrote, or a run's folder"
        ) from None


def ran_on_cpu(spent: Spent) -> bool:
    """Whether a run is known to have been made on a CPU: by its recipe, or by a PyTorch without CUDA."""
    if spent.recipe.model.device == "cpu":
        return True
    try:
        manifest = json.loads((spent.folder / "manifest.json").read_text(encoding="utf-8"))
        return "+cpu" in str(manifest["versions"]["torch"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def of_run(spent: Spent, shape: ModelShape, hardware: Hardware, source: str) -> Calibration:
    """What a run shows: of phase 2 both efficiencies, of every stage the lengths."""
    recipe = spent.recipe
    lengths, right = _lengths(spent), _right(spent)
    setting = Setting(recipe, shape, hardware)
    known = replace(assumed_lengths(recipe), **lengths)  # type: ignore[arg-type]
    update = spent.of("distill", lambda key: key.startswith("update-"))
    rollout = spent.of("distill", lambda key: not key.startswith("update-"))
    products = decoding = speed = None
    work, responses = distill(recipe, known), int(rollout["responses"])
    if update["seconds"] and responses:
        # The run may be going on, or have dropped what was over-long.
        made = training_operations(setting, work) * responses / work.responses
        products = made / (update["seconds"] * hardware.count * peak_of(setting))
    if rollout["seconds"] and responses:
        sample = replace(work.samples[0], responses=responses, prompts=responses)
        decoding = rollout["seconds"] / sampling_seconds(setting, sample, assumed_efficiency(setting))
        speed = rollout["sampled_tokens"] / rollout["seconds"] / hardware.count
    return Calibration(
        recipe.model.path,
        hardware.name,
        recipe.rollout.engine,
        products,
        decoding,
        speed,
        lengths,
        right,
        source,
    )


def _lengths(spent: Spent) -> dict[str, float]:
    measured: dict[str, Any] = {
        "base": spent.mean_tokens("collect", "/initial/") or spent.mean_tokens("evaluate", "/base/responses"),
        "revised": spent.mean_tokens("collect", "/revised/"),
        "student": spent.mean_tokens("distill", "/rollouts/"),
        "srt": spent.mean_tokens("evaluate", "/srt/responses"),
        "sdzero": spent.mean_tokens("evaluate", "/sdzero/responses"),
    }
    own = spent.of("distill")
    if own["responses"] and own["teacher_tokens"] and not spent.recipe.distill.contrast:
        # The teacher reads x + y + P_r + y; a vocabulary of our own may have shorter phrases than is assumed.
        read = own["teacher_tokens"] / own["responses"]
        prompt = read - 2 * own["sampled_tokens"] / own["responses"] - PHRASE_TOKENS
        measured["prompt"] = max(1.0, prompt)
    return {name: value for name, value in measured.items() if value}


def _right(spent: Spent) -> float | None:
    """The share of right revisions, over all rounds."""
    rounds = spent.statistics()
    revised = sum(one["revised"] for one in rounds)
    return sum(one["verified"] for one in rounds) / revised if revised else None
