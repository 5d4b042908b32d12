"""A teacher whose weights stay in the host's memory, and come to the accelerator for its passes alone.

accelerate's hooks (`cpu_offload`) bring each layer's weights when the layer is called, and drop them after
it; the head, which the divergence multiplies with by itself, is brought for each loss. So the accelerator
holds one layer of the teacher at a time, and its head. A sync, a mean and a checkpoint are taken in the
host's memory.

What is computed is what a teacher on the device computes: the weights are the same bits.
"""

import torch
from accelerate import cpu_offload  # type: ignore[import-untyped]
from torch import Tensor
from transformers import PreTrainedModel

from sdzero.method.hidden import output_head
from sdzero.method.teacher import Teacher


class StreamedTeacher(Teacher):
    """A frozen model in the host's memory, whose passes are made on `device`.

    Raises ValueError if the model is not in the host's memory to begin with.
    """

    def __init__(self, model: PreTrainedModel, source: str, device: torch.device | str) -> None:
        super().__init__(model, source)
        if any(parameter.device.type != "cpu" for parameter in model.parameters()):
            raise ValueError("a teacher that is streamed is loaded into the host's memory")
        self._device = torch.device(device)
        head = output_head(model)
        (self._head_name,) = (name for name, module in model.named_modules() if module is head)
        # A weight that has two names (a tied head) has one tensor, so that writing to it changes both.
        self._names = [name for name, _ in model.named_parameters()]
        self._state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        cpu_offload(model, execution_device=self._device, state_dict=self._state)

    @property
    def device(self) -> torch.device:
        """Where its passes are made; its weights are not there."""
        return self._device

    def weights(self) -> dict[str, Tensor]:
        """Its parameters in the host's memory."""
        return {name: self._state[name] for name in self._names}

    def state(self) -> dict[str, Tensor]:
        """Its state in the host's memory."""
        return self._state

    def head(self) -> tuple[Tensor, Tensor | None]:
        """A copy of its head on the device; whoever asked drops it."""
        weight, bias = (self._state.get(f"{self._head_name}.{own}") for own in ("weight", "bias"))
        assert weight is not None, "a linear layer has a weight"
        return weight.to(self._device), None if bias is None else bias.to(self._device)
