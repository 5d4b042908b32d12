"""Weights that are sharded over the processes (FSDP2, ZeRO), and where the whole of them is needed.

FSDP2 shards a model in place: its parameters become `DTensor`s, of which each process holds a part. They are
whole while the model's own forward runs. Sampling, saving and a teacher that is made from the student need
them whole too. DeepSpeed's ZeRO-3 does the like in its own way (`sdzero.zero`). All processes call these
functions at the same place, for they are collective; for a model that is not sharded they do nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, PartialState  # type: ignore[import-untyped]
from accelerate.utils import (  # type: ignore[import-untyped]
    DistributedType,
    FullyShardedDataParallelPlugin,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from sdzero import zero
from sdzero.deepspeed_settings import asks_for


def is_asked_for() -> bool:
    """Whether the launcher's configuration asks for FSDP (`sdzero.process_group` has checked it)."""
    return asks_for("FSDP")


def use_on_cpu(accelerator: Accelerator) -> None:
    """Make accelerate's state that of FSDP on a CPU, where accelerate by itself takes DDP."""
    for state in (PartialState(), accelerator.state):  # the second takes up what the first has
        state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether the model's weights are sharded, or in DeepSpeed's buffers."""
    return isinstance(model, FSDPModule) or zero.is_managed(model)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor's value, gathered if it is sharded."""
    if zero.is_cut_up(tensor):
        return zero.whole(tensor)
    value = tensor.detach()
    if not isinstance(value, DTensor):
        return value
    gathered: torch.Tensor = value.full_tensor()
    return gathered


def without_zero(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, which is the one of this name in the model's state; whole if DeepSpeed holds it.

    A state has tensors without what ZeRO-3 knows of their parameters, so it is asked for the parameter.
    """
    if not zero.is_managed(model):
        return tensor
    owner, _, own = name.rpartition(".")
    return whole(getattr(model.get_submodule(owner), own))


def whole_state(model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """All weights of a sharded model, whole, on the CPU, by name; None for one that is not sharded.

    Names of one and the same weight (a tied head) have one and the same tensor.
    """
    if not is_sharded(model):
        return None
    found: dict[int, torch.Tensor] = {}
    state = model.state_dict(keep_vars=True)
    for tensor in state.values():
        if id(tensor) not in found:
            # ZeRO-2's parameters are views into one buffer.
            found[id(tensor)] = whole(tensor).to("cpu", copy=zero.is_managed(model))
    return {name: found[id(tensor)] for name, tensor in state.items()}


@contextmanager
def whole_weights(model: torch.nn.Module | None) -> Iterator[None]:
    """Have the weights whole in each process for what the block does; it takes the room of the whole model.

    In the block the model may be called any number of times, in some of the processes or in none.
    """
    if model is not None and zero.is_managed(model):
        with zero.whole_weights(model):
            yield
        return
    units = [] if model is None else [one for one in model.modules() if isinstance(one, FSDPModule)]
    groups: list[Any] = [group for unit in units for group in unit._get_fsdp_state()._fsdp_param_groups]
    kept = [group.post_forward_mesh_info for group in groups]
    for unit in units:
        unit.unshard()
    for group in groups:
        group.post_forward_mesh_info = None  # not sharded again after each forward
    try:
        yield
    finally:
        for group, mesh in zip(groups, kept, strict=True):
            group.post_forward_mesh_info = mesh
        for unit in units:
            unit.reshard()
