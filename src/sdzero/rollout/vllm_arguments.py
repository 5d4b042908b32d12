"""What vLLM is started with, in this process or as a server: one place, so that both sample alike."""

from typing import Any

import torch

from sdzero.recipe_rollout import VllmSettings
from sdzero.rollout.vllm_package import is_cpu_build

CPU_CACHE_GIGABYTES = 1.0
COLOCATED_SHARE = 0.3
SERVER_SHARE = 0.85
"""Memory where the recipe sets none: of the CPU build's cache, and the share of a GPU with and without a
trainer in the same process."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def engine_arguments(settings: VllmSettings, dtype: str, batch_size: int) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM`; a server takes the same names as flags (`as_flags`)."""
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "max_num_seqs": batch_size,
        "enable_prefix_caching": True,
        "enforce_eager": settings.enforce_eager,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "disable_log_stats": True,
        # Sampling is what the request says, whatever generation_config.json suggests.
        "generation_config": "vllm",
        # The probe compares log p of the model itself, before temperature and top-p.
        "logprobs_mode": "raw_logprobs",
        "seed": 0,
    }
    if settings.data_parallel_size > 1:
        arguments["data_parallel_size"] = settings.data_parallel_size
    if settings.max_model_len is not None:
        arguments["max_model_len"] = settings.max_model_len
    cpu = is_cpu_build()
    cache = settings.kv_cache_gigabytes
    if cache is None and cpu and settings.gpu_memory_utilization is None:
        cache = CPU_CACHE_GIGABYTES
    if cache is not None:
        arguments["kv_cache_memory_bytes"] = int(cache * 2**30)
    else:
        share = COLOCATED_SHARE if settings.mode == "colocated" else SERVER_SHARE
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization or share
    if can_sleep(settings):
        arguments["enable_sleep_mode"] = True
    return arguments


def can_sleep(settings: VllmSettings) -> bool:
    """Whether vLLM is to sleep between phases, and can: the CPU build cannot."""
    return settings.sleep and not is_cpu_build()


def as_flags(arguments: dict[str, Any]) -> list[str]:
    """The same as command-line flags."""
    flags: list[str] = []
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value is not False:
            flags += [flag, str(value)]
    return flags
