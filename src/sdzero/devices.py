"""Which devices a run works on: for its device-hours, and for whose energy is measured."""

import torch

from sdzero.models import pick_device
from sdzero.recipe import Recipe


def device_count(recipe: Recipe, processes: int) -> int:
    """How many devices the run holds while it works: one a process, and those of its own vLLM beside them.

    A process on CPUs counts as a device. A server of the user's (`rollout.vllm.url`) is not counted: what it
    holds is not known here.
    """
    vllm = recipe.rollout.vllm
    if recipe.rollout.engine != "vllm" or vllm.url is not None:
        return processes
    if vllm.mode == "colocated":
        return max(processes, vllm.tensor_parallel_size)
    return processes + vllm.tensor_parallel_size * vllm.data_parallel_size


def gpus_used(recipe: Recipe) -> list[str]:
    """The UUIDs of the GPUs of this process, as NVML names them: its own; with a vLLM of the run's that takes
    more than that, all that it may see."""
    if pick_device(recipe.model.device).type != "cuda":
        return []
    vllm = recipe.rollout.vllm
    takes_more = recipe.rollout.engine == "vllm" and vllm.url is None
    if takes_more and (vllm.mode == "server" or vllm.tensor_parallel_size > 1):
        numbers = list(range(torch.cuda.device_count()))
    else:
        numbers = [torch.cuda.current_device()]
    return [_uuid(number) for number in numbers]


def _uuid(number: int) -> str:
    found = str(torch.cuda.get_device_properties(number).uuid)
    return found if found.startswith(("GPU-", "MIG-")) else f"GPU-{found}"
