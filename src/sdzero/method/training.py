"""What the trainers share: arguments from a recipe, a plain log, when to end."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sdzero.errors import CollapseError, UserError
from sdzero.method.alarms import MEASURES
from sdzero.models import require_bitsandbytes
from sdzero.recipe_base import OptimizerSettings

OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_bnb_8bit"}
"""What transformers calls them."""


def own_share_of(batch_size: int, key: str = "batch_size") -> int:
    """What of a batch falls to each process. Raises UserError, which names the recipe's `key`, if they cannot
    have equal shares."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    own, rest = divmod(batch_size, processes)
    if rest:
        raise UserError(
            f"batch_size ({batch_size}) is no multiple of the number of processes ({processes})",
            key,
            "change one of them",
        )
    return own


def training_arguments(
    settings: OptimizerSettings,
    output_dir: Path,
    *,
    epochs: int,
    checkpoint_every: int,
    seed: int,
    gradient_checkpointing: bool,
    use_cpu: bool,
) -> dict[str, Any]:
    """Keyword arguments for `TrainingArguments` (or a subclass) that the settings stand for.

    Weights are trained in the dtype they are in: there is no autocast. Nothing is reported anywhere but
    to the callbacks. Several processes share `batch_size` out, in micro-batches of at most
    `micro_batch_size`. Raises UserError if they cannot have equal shares.
    """
    if settings.optimizer == "adamw_8bit":
        require_bitsandbytes("optimizer", "set optimizer to adamw")
    own = own_share_of(settings.batch_size)
    micro = settings.micro_batch_of(own)
    return {
        "output_dir": str(output_dir),
        "num_train_epochs": epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": own // micro,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        # transformers reads a number below 1 as a share of all steps.
        "warmup_steps": settings.warmup_steps or settings.warmup_ratio,
        "optim": OPTIMIZERS[settings.optimizer],
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.betas[0],
        "adam_beta2": settings.betas[1],
        "max_grad_norm": settings.max_grad_norm,
        "gradient_checkpointing": gradient_checkpointing,
        "bf16": False,
        "fp16": False,
        "use_cpu": use_cpu,
        "ddp_find_unused_parameters": False,  # every loss reaches every parameter
        "dataloader_pin_memory": not use_cpu,
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": checkpoint_every,
        "save_total_limit": settings.checkpoints_kept,
        "logging_strategy": "steps",
        "logging_steps": 1,
        # A loss that is not a number must be seen, not replaced by the mean of the others.
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }


def evaluations_without_progress(state: TrainerState, score: str = "eval_avg") -> int:
    """How many evaluations there were since the best one (the first of equals)."""
    scores = [row[score] for row in state.log_history if score in row]
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


class StopWithoutProgress(TrainerCallback):
    """Ends training after `patience` evaluations in a row that are not above the best.

    It reads the evaluations from the trainer's state, which is saved with each checkpoint, so a resumed
    run ends where an uninterrupted one does (transformers' own callback counts from nothing again).
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for the end when it is due."""
        if evaluations_without_progress(state) >= self.patience:
            control.should_training_stop = True
        return control


def _shorten_history(state: TrainerState) -> None:
    """Take the newest row out of the trainer's own history, but for what a resumed training's alarms need.

    The whole row is in the run's log. The history stays in memory and is written with each checkpoint, so of
    a step it holds no more than a few numbers: in its first row, as `past`, by measure.
    """
    row = state.log_history.pop()
    history: Any = state.log_history
    if not history or "past" not in history[0]:
        history.insert(0, {"past": {}})
    past = history[0]["past"]
    for measure in MEASURES:
        if measure in row:
            past.setdefault(measure, []).append(row[measure])


class PlainLog(TrainerCallback):
    """Hands each step's numbers, with `step` and `max_steps`, to a function; stops at a broken loss."""

    def __init__(self, report: Callable[[dict[str, Any]], None] | None) -> None:
        self._report = report

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Pass on the logs of a step or of an evaluation. Raises CollapseError for a loss or a gradient norm
        that is not finite."""
        logs = logs or {}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(float(logs.get(name, 0.0))):
                raise CollapseError(
                    f"training broke down: {name} is {logs[name]} at step {state.global_step}",
                    todo="lower learning_rate, or train in a wider dtype (model.dtype=float32)",
                )
        if "loss" in logs:
            _shorten_history(state)
        is_step = "loss" in logs or any(name.startswith("eval_") for name in logs)
        if self._report is not None and is_step and state.is_world_process_zero:
            self._report({"step": state.global_step, "max_steps": state.max_steps, **logs})


class StopWhenSpent(TrainerCallback):
    """Ends training, with a checkpoint, after the step whose responses spent the budget."""

    def __init__(self, is_spent: Callable[[int], bool]) -> None:
        self._is_spent = is_spent

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for the end when it is due."""
        if self._is_spent(state.global_step):
            control.should_save = control.should_training_stop = True
        return control
