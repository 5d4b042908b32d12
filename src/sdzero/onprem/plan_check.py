"""`sdzero doctor`: does the recipe fit one device of this machine, by the plan's model of memory?

The plan is arithmetic (docs/plan.md says how near it came to measured peaks), so what it says is a warning at
most. It is of one process, as `sdzero run` starts it.
"""

from collections.abc import Iterator

from sdzero.errors import UserError
from sdzero.onprem.findings import Finding, Subject, warning
from sdzero.onprem.hardware import GB, Device, Hardware, this_cpu
from sdzero.onprem.model_shape import shape_of
from sdzero.onprem.plan_memory import peak_moment, stage_moments, total
from sdzero.onprem.plan_setting import Setting
from sdzero.onprem.plan_switches import room_of, switches
from sdzero.recipe import Recipe

NAME = "plan"


def planned_memory(subject: Subject) -> Iterator[Finding]:
    """The most demanding moment of the run beside the memory of the device."""
    if subject.recipe is None or {"model", "gpu"} & subject.failed:
        return
    try:
        shape = shape_of(subject.recipe.model.path)
    except UserError as fault:
        yield Finding(NAME, True, f"memory is not planned for this model: {fault.what}")
        return
    yield finding_of(Setting(subject.recipe, shape, Hardware(device_here(subject.recipe))))


def device_here(recipe: Recipe) -> Device:
    """The device that a run would use: of several GPUs the one with the least memory."""
    import torch

    from sdzero.models import pick_device

    if pick_device(recipe.model.device).type == "cpu":
        return this_cpu()
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    least = min(found, key=lambda own: own.total_memory)
    # Only memory is planned: speeds and watts are not used.
    return Device(least.name, least.total_memory, 1, 1, 1, 0, 0, "as PyTorch sees it")


def finding_of(setting: Setting) -> Finding:
    """What the plan says of this setting."""
    moments = {stage: peak_moment(own) for stage, own in stage_moments(setting).items()}
    stage = max(moments, key=lambda name: total(moments[name][1]))
    moment, parts = moments[stage]
    needs = (
        f"the plan's peak is {total(parts) / GB:.1f} GB ({stage}, {moment}) of the"
        f" {room_of(setting) / GB:.1f} GB of {setting.hardware.device.name}"
    )
    if total(parts) <= room_of(setting):
        return Finding(NAME, True, needs)
    enough = [switch.text for switch in switches(setting) if switch.fits]
    turn = f"set {' or '.join(enough[:2])}" if enough else "no switch alone is enough"
    return warning(NAME, f"{needs}: it does not fit", f"{turn} (see sdzero plan)")
