"""Training with several processes: who works on what of a step, and a loss that wrappers know of.

All processes are given the whole batch of each step, and each works on its share. The loss is a sum over
sequences whose normaliser is the global batch's, so the result is that of one process, to rounding.

Gradients are exchanged by accelerate's wrappers (DDP, FSDP2, DeepSpeed), which act when their `forward` is
called. Our losses need more than a forward pass of the model: so the model is given a forward that runs what
it is handed (`let_losses_in`), inside the wrapper's own. The wrappers average over the processes what has to
be added up, so a loss is multiplied with their number.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader  # type: ignore[import-untyped]
from transformers import PreTrainedModel, Trainer

from sdzero import ranks, sharded
from sdzero.adapters import has_adapter
from sdzero.errors import UserError
from sdzero.method.hidden import hidden_states, logits_of, output_head
from sdzero.method.zero_training import TrainsWithZero

Loss = Callable[[], torch.Tensor]


class ManyProcesses(Trainer):
    """What every trainer of ours needs with several processes, whatever its loss."""

    def create_accelerator_and_postprocess(self) -> None:
        """Take FSDP on a CPU too, where accelerate has it for GPUs only."""
        super().create_accelerator_and_postprocess()
        if self.accelerator.num_processes > 1 and sharded.is_asked_for() and not self.accelerator.is_fsdp2:
            sharded.use_on_cpu(self.accelerator)
            super().create_accelerator_and_postprocess()

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        ranks.barrier()  # each process has saved its part before the first one marks the whole


class DataParallel(TrainsWithZero, ManyProcesses):
    """A trainer that is right with any number of processes; with one it is `Trainer`."""

    def get_train_dataloader(self) -> Any:
        """The batches of all processes, the same for each of them, in the order of one process.

        accelerate would shard them, and repeat the first rows of an epoch where the last batch is not full.
        """
        if self.accelerator.num_processes == 1:
            return super().get_train_dataloader()
        dataset: Any = self.train_dataset
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=self._train_batch_size * self.accelerator.num_processes,
            sampler=self._get_train_sampler(),
            collate_fn=self.data_collator,
        )
        return prepare_data_loader(
            loader,
            num_processes=1,
            process_index=0,
            put_on_device=False,
            use_seedable_sampler=True,
            data_seed=self.args.data_seed,
        )

    def check_sharding(self) -> None:
        """Raise UserError for an adapter on weights to be sharded, and for what ZeRO cannot train; it is
        called when the trainer is made."""
        if self.accelerator.num_processes == 1:
            return
        bare = self.accelerator.unwrap_model(self.model)
        if self.is_fsdp_enabled and has_adapter(bare):
            raise UserError(
                "an adapter's weights are not sharded, and FSDP is asked for",
                "lora",
                "use DDP (recipes/distributed/ddp.yaml): an adapter's gradients and states are small",
            )
        self.check_for_zero(bare)

    def loss_inside(self, model: torch.nn.Module, loss: Loss) -> torch.Tensor:
        """`loss()`, run where `model`'s wrapper expects its forward; scaled, for it averages gradients."""
        if self.accelerator.num_processes == 1:
            return loss()
        found: torch.Tensor = model(loss=loss) * self.accelerator.num_processes
        return found

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train with a forward that runs a loss it is handed, and leave the model with its own."""
        if self.accelerator.num_processes > 1:
            let_losses_in(self.accelerator.unwrap_model(self.model))
        try:
            return super().train(*args, **kwargs)
        finally:
            keep_losses_out(self.accelerator.unwrap_model(self.model))


def let_losses_in(model: torch.nn.Module) -> None:
    """Give a model a forward that, handed a loss, runs it, and else is its own."""
    own = model.forward

    @functools.wraps(own)
    def forward(*args: Any, loss: Loss | None = None, **kwargs: Any) -> Any:
        return own(*args, **kwargs) if loss is None else loss()

    forward.own = model.__dict__.get("forward")  # type: ignore[attr-defined]
    model.forward = forward


def keep_losses_out(model: torch.nn.Module) -> None:
    """Take that forward away again, if it is there."""
    installed: Any = model.__dict__.get("forward")
    if not hasattr(installed, "own"):
        return
    del model.__dict__["forward"]
    if installed.own is not None:
        model.__dict__["forward"] = installed.own


def no_loss(model: PreTrainedModel, pad_token_id: int) -> torch.Tensor:
    """0, with a gradient of 0 for every parameter: for a process that nothing fell to.

    With several processes it is from a forward pass, which those that share parameters wait for.
    """
    if ranks.count() == 1:
        return 0.0 * torch.stack([p.sum() for p in model.parameters() if p.requires_grad]).sum()
    ids_BT = torch.full((1, 1), pad_token_id, device=model.device)
    hidden_TD = hidden_states(model, ids_BT, torch.zeros(1, dtype=torch.long))
    nothing: torch.Tensor = 0.0 * logits_of(output_head(model), hidden_TD).sum()
    return nothing
