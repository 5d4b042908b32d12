"""Weights that DeepSpeed's ZeRO-3 has cut up, and where the whole of them is needed.

ZeRO-3 leaves each process a part of each parameter; the parameter itself is empty, until hooks around the
forward of its layer have gathered it. ZeRO-2 leaves parameters whole, as views into buffers of DeepSpeed's.
All processes call these functions at the same place, for they are collective.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

MANAGED = "managed_by_deepspeed"


def manage(model: torch.nn.Module, used_outside: torch.nn.Module) -> None:
    """Note that DeepSpeed holds the weights of this model from now on.

    The own parameters of `used_outside` are read in the model's forward, but outside that of their layer:
    ZeRO-3 gathers them for the whole of it.
    """
    model.__dict__[MANAGED] = True
    for parameter in used_outside.parameters(recurse=False):
        if is_cut_up(parameter):
            import deepspeed

            deepspeed.zero.register_external_parameter(model, parameter)


def get_ready(device: torch.device) -> None:
    """Set what DeepSpeed takes from its surroundings; before a model is handed to it."""
    import deepspeed

    if device.type == "cpu":  # DeepSpeed's own collectives would be compiled first, at run time
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # What torch has new names for; it would be told at every call.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)


def let_go(engine: Any) -> None:
    """Free what DeepSpeed's engine holds, when the training is over. Weights that are cut up stay so, and can
    still be gathered."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    engine.destroy()
    # Ways from what lives on to the optimizer's state, which `destroy` leaves.
    FWD_MODULE_STACK[:] = [module for module in FWD_MODULE_STACK if module is not engine.module]
    for parameter in engine.module.parameters():
        parameter.__dict__.pop("_z3_optimizer", None)
    _take_hooks_off(engine.module)


def is_managed(model: torch.nn.Module) -> bool:
    """Whether DeepSpeed holds the model's weights, cut up or not."""
    return MANAGED in model.__dict__


def is_cut_up(tensor: torch.Tensor) -> bool:
    """Whether this is a parameter of which each process holds a part."""
    return hasattr(tensor, "ds_id")


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """A copy of the whole of a parameter that is cut up."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


@contextmanager
def whole_weights(model: torch.nn.Module) -> Iterator[None]:
    """Have the weights whole in each process for what the block does, and DeepSpeed's hooks off.

    The hooks are collective, and would cut each layer up again after its forward; without them the model may
    be called any number of times, in some of the processes or in none.
    """
    parameters = [one for one in model.parameters() if is_cut_up(one)]
    if not parameters:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters), _without_hooks(model):
        yield


@contextmanager
def _without_hooks(model: torch.nn.Module) -> Iterator[None]:
    kept = [(hooks, dict(hooks)) for hooks in _hooks(model)]
    _take_hooks_off(model)
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)


def _hooks(model: torch.nn.Module) -> Iterator[dict[int, Any]]:
    for module in model.modules():
        yield module._forward_pre_hooks
        yield module._forward_hooks


def _take_hooks_off(model: torch.nn.Module) -> None:
    for hooks in _hooks(model):
        for key, hook in list(hooks.items()):
            if hook.__module__.startswith("deepspeed."):
                del hooks[key]
