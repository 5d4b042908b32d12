"""Training under DeepSpeed's ZeRO-2 and ZeRO-3, through transformers' Trainer and accelerate.

accelerate's engine steps the optimizer inside the backward pass that it takes for the step's last, and only
there: a step may have any number of backward passes, if all but the last are said not to be (`no_step_yet`).
Gradients are reduced to their owners in each pass, whose sum is kept. DeepSpeed divides them by the number of
processes, as DDP does, and clips by the norm of the whole.

Weights and optimizer states are in DeepSpeed's hands: float32 copies of the weights are what is stepped, also
where the model itself is bfloat16. Checkpoints have DeepSpeed's own files beside the whole model.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.training_args import OptimizerNames

from sdzero import ranks, zero
from sdzero.adapters import has_adapter
from sdzero.errors import UserError
from sdzero.method.hidden import output_head

DTYPES = (torch.float32, torch.bfloat16)


class TrainsWithZero(Trainer):
    """A trainer that also runs under ZeRO; without it, it is `Trainer`."""

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers does it, but models that are loaded from now on are whole, under ZeRO-3 too."""
        super().create_accelerator_and_postprocess()
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]

    def check_for_zero(self, model: torch.nn.Module) -> None:
        """Raise UserError for what cannot be trained under ZeRO, if that is asked for."""
        if not self.is_deepspeed_enabled:
            return
        if has_adapter(model):
            raise UserError(
                "adapters are not trained under DeepSpeed",
                "lora",
                "use DDP (recipes/distributed/ddp.yaml): an adapter's gradients and states are small",
            )
        kinds = {parameter.dtype for parameter in model.parameters()}
        if len(kinds) > 1 or not kinds <= set(DTYPES):
            names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
            raise UserError(
                f"DeepSpeed steps float32 copies of the weights, and these are {names}",
                "model.dtype",
                "set it to float32 or bfloat16",
            )
        if "8bit" in OptimizerNames(self.args.optim).value:
            raise UserError(
                "adamw_8bit is not supported with DeepSpeed, which shards the optimizer's state",
                "optimizer",
                "set it to adamw",
            )

    def _prepare_for_training(self, max_steps: int, loader: Any, resume: Any) -> Any:
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, loader, resume)  # type: ignore[no-untyped-call]
        model = self.accelerator.unwrap_model(self.model)
        if resume is not None:
            check_checkpoint(Path(resume))
        zero.get_ready(self.args.device)
        _configure(self.accelerator.state.deepspeed_plugin.deepspeed_config, model)
        prepared = super()._prepare_for_training(max_steps, loader, resume)  # type: ignore[no-untyped-call]
        # Losses read the head's weights, and not through its own forward.
        zero.manage(model, used_outside=output_head(model))
        return prepared

    @contextlib.contextmanager
    def no_step_yet(self, model: torch.nn.Module) -> Iterator[None]:
        """A backward pass in the block is not the step's last."""
        if not self.is_deepspeed_enabled:
            with self.accelerator.no_sync(model):
                yield
            return
        state = self.accelerator.gradient_state
        kept = state.sync_gradients
        state._set_sync_gradients(False)
        try:
            yield
        finally:
            state._set_sync_gradients(kept)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and give back what DeepSpeed held; the weights stay where they are."""
        found = super().train(*args, **kwargs)
        engine = getattr(self, "deepspeed", None)
        if engine is not None:
            zero.let_go(engine)
        return found

    def _load_best_model(self) -> None:
        # A training that had ended already, and was only killed before its model was kept, has no engine.
        if self.is_deepspeed_enabled and self.model_wrapped is self.model:
            assert self.state.best_model_checkpoint is not None
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and not self.is_deepspeed_enabled and _owners(Path(checkpoint)):
            raise UserError(
                "this checkpoint was written under DeepSpeed, and the run goes on without it",
                checkpoint,
                "start it as before, or remove the folder of checkpoints to train the stage anew",
            )
        super()._load_optimizer_and_scheduler(checkpoint)


def _owners(checkpoint: Path) -> int:
    """How many processes had a part of the optimizer's state in a checkpoint of DeepSpeed's; 0 in another."""
    return len(list(checkpoint.glob("global_step*/*_optim_states.pt")))


def check_checkpoint(checkpoint: Path) -> None:
    """Raise UserError for a checkpoint that ZeRO cannot go on from with this number of processes."""
    owners = _owners(checkpoint)
    if owners == ranks.count():
        return
    what = f"was written by {owners} processes under DeepSpeed, and there are {ranks.count()} now"
    raise UserError(
        f"this checkpoint {what if owners else 'was not written under DeepSpeed'}",
        str(checkpoint),
        "start the run as before, or remove the folder of checkpoints to train the stage anew",
    )


def _configure(config: dict[str, Any], model: torch.nn.Module) -> None:
    """What our trainers need of DeepSpeed's configuration, beside what transformers fills in."""
    config["bf16"] = {"enabled": next(model.parameters()).dtype == torch.bfloat16}
    config["zero_optimization"] |= {
        # By the model's width, as transformers proposes.
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        # A checkpoint holds the model itself, whole.
        "stage3_gather_16bit_weights_on_model_save": True,
    }
