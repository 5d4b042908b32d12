"""What a launcher's configuration may ask of DeepSpeed: ZeRO-2 or ZeRO-3 over several processes, and no more.

accelerate reads its configuration from variables that its launcher sets; whoever starts the processes in
another way sets the same ones. What is refused is refused for a reason, which stands beside it. Imports no
torch.
"""

import importlib.util
import os

from sdzero.errors import UserError

START = "start from recipes/distributed/zero2.yaml or zero3.yaml"
STAGES = (2, 3)

PREFIX = "ACCELERATE_DEEPSPEED_"
OFFLOADS = {
    "offload_optimizer_device": PREFIX + "OFFLOAD_OPTIMIZER_DEVICE",
    "offload_param_device": PREFIX + "OFFLOAD_PARAM_DEVICE",
}
THE_RECIPES = {
    "gradient_clipping": ("ACCELERATE_GRADIENT_CLIPPING", "max_grad_norm"),
    "gradient_accumulation_steps": ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "batch_size"),
}
"""What the recipe says, under another name: a second number would contradict it."""


def asks_for(what: str) -> bool:
    """Whether accelerate's launcher was told to use this: `FSDP` or `DEEPSPEED`."""
    return os.environ.get(f"ACCELERATE_USE_{what}", "false").lower() in ("1", "true", "yes")


def stage() -> int:
    """The stage of ZeRO that is asked for; accelerate's default is 2."""
    return int(os.environ.get(PREFIX + "ZERO_STAGE", "2"))


def stay_on_cpu() -> None:
    """Tell DeepSpeed that there is no GPU, which it would otherwise warn of; before it is imported."""
    if asks_for("DEEPSPEED"):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def check(processes: int) -> None:
    """Raise UserError if DeepSpeed is asked for and is not there, or in a way that cannot be used here."""
    if not asks_for("DEEPSPEED"):
        return
    where = "deepspeed_config"
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "DeepSpeed is asked for and not installed",
            "distributed_type",
            "pip install 'sdzero[deepspeed]', or use recipes/distributed/fsdp2.yaml, which shards the same",
        )
    if os.environ.get(PREFIX + "CONFIG_FILE", "none") != "none":
        raise UserError("a configuration file of DeepSpeed's own is not read", f"{where}_file", START)
    if stage() not in STAGES:
        raise UserError(f"ZeRO stage {stage()} is not supported: 2 and 3 are", f"{where}.zero_stage", START)
    for key, variable in OFFLOADS.items():
        if (device := os.environ.get(variable, "none")) != "none":
            # accelerate would put DeepSpeed's own Adam in place of ours, without its betas.
            raise UserError(f"{key}: {device} is not supported", f"{where}.{key}", "leave it out")
    for key, (variable, own) in THE_RECIPES.items():
        if os.environ.get(variable, "auto") != "auto":
            raise UserError(
                f"{key} is for the recipe to say ({own})", f"{where}.{key}", "leave it out, or set it to auto"
            )
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
        raise UserError(
            "weights are trained in the type that the recipe names (model.dtype)",
            "mixed_precision",
            'set it to "no"',
        )
    if stage() == 3 and os.environ.get(PREFIX + "ZERO3_INIT", "true").lower() != "false":
        raise UserError(
            "every process loads whole models, for sampling and as the teacher",
            f"{where}.zero3_init_flag",
            "set it to false",
        )
    if processes == 1:
        raise UserError(
            "ZeRO shards over several processes, and there is one", "num_processes", "set it to 2 or more"
        )
