"""Where phase 2 starts with LoRA: student and teacher, both at the SRT model, whatever SRT left."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from sdzero.adapters import ADAPTER_WEIGHTS, adapter_state
from sdzero.method.adapter_teacher import AdapterTeacher
from sdzero.method.teacher import Teacher, fingerprint
from sdzero.run_context import RunContext
from sdzero.teacher_start import Placement, load_teacher


def student_and_teacher(
    context: RunContext,
    start: str,
    teacher_folder: str | None = None,
    placement: Placement = "device",
) -> tuple[PreTrainedModel, Teacher]:
    """The student with an adapter, and its teacher, both at the model in `start`; for recipes with LoRA.

    A teacher from another folder, or a copy, is a model of its own, placed as `placement` says. Raises
    ValueError if the teacher is not the model in `start` bit for bit, as it would not be if an adapter were
    off or left out.
    """
    lora = context.recipe.lora
    assert lora is not None, "for recipes with LoRA"
    named = teacher_folder or start
    goes_on = context.trains_on_adapter(start)
    if goes_on:
        student, expected = context.load_to_train(start), None
    else:
        student = context.load(start)
        expected = fingerprint(student)
        context.put_adapter(student, start)
    if lora.teacher == "copy" or named != start:
        return student, load_teacher(context, named, placement)
    teacher = AdapterTeacher.beside(student, start)
    if expected is None:
        stored = load_file(Path(start) / ADAPTER_WEIGHTS)
        own = adapter_state(teacher.model)
        is_start = set(own) == set(stored) and all(torch.equal(own[name], stored[name]) for name in own)
    else:
        is_start = teacher.fingerprint == expected
    if not is_start:
        raise ValueError(f"the teacher is not the model in {start}: an adapter is off, or was left out")
    return student, teacher
