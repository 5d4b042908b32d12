"""A teacher that is sharded over the processes, as FSDP2 shards the student.

accelerate cuts its layers as it cuts the student's. A pass gathers one layer after the other and frees each
after its part; after the pass nothing is left gathered. The head, which the divergence multiplies with by
itself, is gathered for each loss. All of this is collective: a process that has nothing for the teacher to
read joins the passes of the others (`join`).

A sync, and a mean, are taken shard by shard, without any exchange: student and teacher are cut alike.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import fsdp2_prepare_model  # type: ignore[import-untyped]
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Placement, distribute_tensor
from transformers import PreTrainedModel

from sdzero import sharded
from sdzero.errors import UserError
from sdzero.method.data_parallel import let_losses_in
from sdzero.method.teacher import Teacher

Found = TypeVar("Found")


def check_sharding() -> None:
    """Raise UserError if nothing shards here: the launcher did not ask for FSDP."""
    if not sharded.is_asked_for():
        raise UserError(
            "the teacher is to be sharded as FSDP2 shards the student, and FSDP is not asked for",
            "distill.teacher_placement",
            "start with `accelerate launch --config_file recipes/distributed/fsdp2.yaml`, or set"
            " distill.teacher_placement to device or cpu",
        )


@dataclass(frozen=True)
class Layout:
    """How a weight is cut: over which processes, along which dimension, and what the whole of it is."""

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: DTensor) -> "Layout":
        """The layout of a sharded tensor."""
        return cls(tensor.device_mesh, tuple(tensor.placements), tensor.shape, tensor.stride())


class ShardedTeacher(Teacher):
    """A frozen model of which each process holds a part. Until `place` is called it is whole.

    Raises UserError if FSDP is not asked for.
    """

    is_sharded = True

    def __init__(self, model: PreTrainedModel, source: str) -> None:
        check_sharding()
        super().__init__(model, source)
        self._device = model.device
        self._layouts: dict[str, Layout] = {}

    @property
    def device(self) -> torch.device:
        """Where its passes are made."""
        return self._device

    def place(self, accelerator: Accelerator) -> None:
        """Shard it, with the settings that accelerate has for the student; whole layers go once its shards
        are there."""
        let_losses_in(self.model)
        plugin = accelerator.state.fsdp_plugin
        # What accelerate notes there of a model's layers is to be the student's.
        accelerator.state.fsdp_plugin = copy.copy(plugin)
        try:
            fsdp2_prepare_model(accelerator, self.model)
        finally:
            accelerator.state.fsdp_plugin = plugin
        self._device = accelerator.device
        state = self.model.state_dict().items()
        self._layouts = {name: Layout.of(tensor) for name, tensor in state if isinstance(tensor, DTensor)}

    def weights(self) -> dict[str, Tensor]:
        """Its parameters: the shards of this process."""
        return {name: _held(parameter.detach()) for name, parameter in self.model.named_parameters()}

    def state(self) -> dict[str, Tensor]:
        """Its state: the shards of this process, and buffers, which are whole."""
        return {name: _held(tensor) for name, tensor in self.model.state_dict().items()}

    def part(self, name: str, tensor: Tensor) -> Tensor:
        """The shard of this process. One that the student cut alike is there already."""
        own = self._layouts.get(name)
        if own is None:
            return sharded.whole(tensor)
        if isinstance(tensor, DTensor) and Layout.of(tensor) == own:
            return tensor.to_local()
        full = sharded.whole(tensor).to(self._device)
        # Every process has the whole of it: each takes its own part.
        return distribute_tensor(full, own.mesh, own.placements, src_data_rank=None).to_local()

    def gathered(self, name: str, part: Tensor) -> Tensor:
        """The whole weight, in every process."""
        own = self._layouts.get(name)
        if own is None:
            return part
        tensor = DTensor.from_local(part, own.mesh, own.placements, shape=own.shape, stride=own.stride)
        return sharded.whole(tensor)

    @torch.no_grad()
    def run(self, work: Callable[[], Found]) -> Found:
        """`work()`, inside the model's own forward, which gathers the layers; all are freed after it."""
        try:
            found: Found = self.model(loss=work)
            return found
        finally:
            self._free()

    @torch.no_grad()
    def logits(self, ids_BT: Tensor) -> Tensor:
        """[B, T, V]: what the model itself says."""
        try:
            return super().logits(ids_BT)
        finally:
            self._free()

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Its head, gathered; whoever asked drops it."""
        head = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        weight, bias = (
            None if own is None else sharded.whole(own).to(self.device) for own in (head.weight, head.bias)
        )
        assert weight is not None, "a linear layer has a weight"
        return weight, bias

    def join(self, passes: int, token_id: int) -> None:
        """So many passes over one token, and the head: what the others gather, this process gathers too."""
        ids_BT = torch.full((1, 1), token_id, device=self.device)
        for _ in range(passes):
            self.hidden_states(ids_BT, torch.zeros(1, dtype=torch.long))
        self.head()

    def _free(self) -> None:
        """Free what is gathered still: the embedding, the norm and the head, which FSDP2 keeps for a backward
        pass, and its notes of the passes, which one would have taken up."""
        assert isinstance(self.model, FSDPModule)
        self.model.reset_iter_state()


def _held(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
