"""SD-Zero: self-distillation post-training of language models (arXiv 2604.12002).

Public names: `Recipe`, `collect`, `SRTTrainer`, `SRTConfig`, `SelfDistillationTrainer`,
`SelfDistillationConfig`, `evaluate`. They are imported on first use, so that `import sdzero` is cheap.
"""

import importlib
import logging
import os
import warnings
from typing import Any

TELEMETRY_OFF = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and with it transformers, datasets and TRL's trainers
    "DO_NOT_TRACK": "1",  # the same, vLLM and others
    "VLLM_NO_USAGE_STATS": "1",
}
# Before any library that would phone home is imported: nothing goes out.
for _name, _value in TELEMETRY_OFF.items():
    os.environ.setdefault(_name, _value)
# TRL warns of newer versions of vLLM than its own use of it knows; its use of it is not ours.
warnings.filterwarnings("ignore", message="TRL currently supports vLLM versions")
# bitsandbytes looks for kernels on the hub where the package `kernels` is installed, and warns where not.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

__version__ = "0.1.0"

_PUBLIC = {
    "Recipe": "sdzero.recipe",
    "collect": "sdzero.method.collect",
    "SRTTrainer": "sdzero.method.srt",
    "SRTConfig": "sdzero.method.srt",
    "SelfDistillationTrainer": "sdzero.method.distill",
    "SelfDistillationConfig": "sdzero.method.distill_config",
    "evaluate": "sdzero.evaluate.score",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'sdzero' has no attribute '{name}'")
