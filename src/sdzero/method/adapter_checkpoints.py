"""Checkpoints of a model with an adapter: the adapter alone is saved, and read into the same parameters."""

from typing import Any

import torch

from sdzero.adapters import has_adapter, load_adapter_weights
from sdzero.method.checkpoints import SavesWhole


class KeepsAdapters(SavesWhole):
    """A trainer that resumes a model with an adapter inside.

    transformers saves such a model's adapter alone, and reads one only into peft's own wrapper.
    """

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        own: Any = self.model if model is None else model
        inner = self.accelerator.unwrap_model(own)
        if has_adapter(inner):
            load_adapter_weights(inner, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        inner = self.accelerator.unwrap_model(self.model)
        if has_adapter(inner):
            assert self.state.best_model_checkpoint is not None
            load_adapter_weights(inner, self.state.best_model_checkpoint)
        else:
            super()._load_best_model()
