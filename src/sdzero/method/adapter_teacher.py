"""The Reviser with LoRA: an adapter of its own on the student's frozen weights.

Two adapters, one set of weights W, and none of them is ever off. At the start of phase 2 both compute the SRT
model: either SRT's adapter was merged, so that W is the SRT model and both adapters are 0; or the student
trains SRT's adapter on, and the teacher has a copy of it. A sync copies the student's adapter.

The teacher is a model object of its own whose frozen parameters are the student's (the very tensors), so that
no adapter has to be switched in a forward pass, or in the one that gradient checkpointing makes again.
"""

import copy

import torch
from transformers import PreTrainedModel

from sdzero.adapters import adapter_parameters, has_adapter, is_adapter_name, plain_name
from sdzero.method.teacher import Teacher, fingerprint_of


def beside(student: PreTrainedModel) -> PreTrainedModel:
    """A model object with the student's frozen parameters, shared, and its adapter, copied."""
    shared = {id(p): p for name, p in student.named_parameters() if not is_adapter_name(name)}
    return copy.deepcopy(student, dict(shared))


def adapted_fingerprint(model: PreTrainedModel) -> str:
    """The fingerprint of a model with an adapter; with one that is 0, that of the model without it."""
    adapter = adapter_parameters(model)
    weights = {plain_name(n): p for n, p in model.named_parameters() if not is_adapter_name(n)}
    adds = any(bool(p.count_nonzero()) for name, p in adapter.items() if ".lora_B." in name)
    named = (pair for own in ((weights, adapter) if adds else (weights,)) for pair in sorted(own.items()))
    return fingerprint_of(named)


class AdapterTeacher(Teacher):
    """A frozen adapter beside the student's. A sync, a mean and a saved state are the adapter's alone."""

    @classmethod
    def beside(cls, student: PreTrainedModel, source: str) -> "AdapterTeacher":
        """The student as it is now, frozen."""
        if not has_adapter(student):
            raise ValueError("the student has no adapter")
        return cls(beside(student), source)

    def find_fingerprint(self) -> str:
        """Of the weights and the adapter; as long as the adapter is 0, the weights' own."""
        return adapted_fingerprint(self.model)

    def own_parameters(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """The adapter's parameters."""
        return dict(adapter_parameters(model))

    def sync(self, student: PreTrainedModel) -> None:
        """Teacher := student: its adapter is copied, on weights that both have."""
        own, students = self.own_parameters(self.model), self.own_parameters(student)
        if set(own) != set(students):
            raise ValueError("student and teacher have different adapters")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(students[name])
        self.sync_count += 1
        self._means, self._fingerprint = {}, None


def check_apart(student: PreTrainedModel, teacher: Teacher) -> None:
    """Raise ValueError if training the student would change the teacher.

    Shared are at most the frozen weights below the adapters of both.
    """
    teachers = {id(p) for p in teacher.model.parameters()}
    both = {name: p for name, p in student.named_parameters() if id(p) in teachers}
    if not both:
        return
    frozen = has_adapter(student) and has_adapter(teacher.model)
    if not frozen or any(is_adapter_name(name) or p.requires_grad for name, p in both.items()):
        raise ValueError("the teacher shares parameters with the student")
