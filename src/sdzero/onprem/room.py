"""Is there room for a run? The disk for its models and checkpoints, the host's memory for its weights.

What is counted is what the run is sure to need, from the model's size and the recipe; the memory of
activations, of sampled responses and of GPUs is not. Imports no torch.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdzero.onprem.findings import Finding, Subject
from sdzero.onprem.hardware import GIBIBYTE
from sdzero.onprem.model_checks import model_folder, names_in_index
from sdzero.onprem.plan_setting import SIZES
from sdzero.recipe import Recipe
from sdzero.safetensors_header import numbers_by_type

MOMENTS = 2
"""AdamW keeps two numbers a parameter, in the parameter's own type."""
IN_4_BITS = 0.5
"""Bytes of a quantized parameter, without its scales."""

MEMORY_INFO = Path("/proc/meminfo")
CONTROL_GROUP = Path("/sys/fs/cgroup")


def parameters_of(weights: Sequence[Path]) -> int:
    """How many parameters safetensors files hold, from their headers alone. Raises UserError for a file that
    is damaged."""
    return numbers_by_type(weights).total()


@dataclass(frozen=True)
class Need:
    """Bytes that a run needs: on the disk, of models that stay and of checkpoints at one time; and in the
    host's memory, of each process."""

    models: int
    checkpoints: int
    memory: int


def need_of(recipe: Recipe, parameters: int, on_gpu: bool) -> Need:
    """What a run of this recipe needs with a model of so many parameters.

    Each stage keeps a model. While one trains there are `checkpoints_kept` checkpoints, one that is being
    written, and two that the alarms keep; each holds the student and AdamW's moments, in phase 2 also the
    teacher once it was synchronised. With LoRA checkpoints hold adapters, which are left out here.
    """
    size = parameters * SIZES[recipe.model.dtype]
    stages = 1 + (recipe.collect.rounds if recipe.srt.checkpoint is None else 0) + recipe.rft.enabled
    if recipe.lora is not None:
        keeps_adapters = recipe.lora.keeps_adapter(recipe.model.quantization)
        held = round(parameters * IN_4_BITS) if recipe.model.quantization else size
        teacher = size if recipe.lora.teacher == "copy" else 0
        return Need(0 if keeps_adapters else stages * size, 0, held + teacher)
    extra = 2 if recipe.alarms.enabled else 0
    teacher_changes = recipe.distill.sync != "never" or recipe.distill.teacher_decay is not None
    trained = 1 + MOMENTS
    checkpoints = max(
        (recipe.srt.checkpoints_kept + 1 + extra) * trained,
        (recipe.distill.checkpoints_kept + 1 + extra) * (trained + teacher_changes),
    )
    # Student, gradients and moments, and the teacher; on a GPU they lie there, and weights pass through.
    memory = size if on_gpu else (trained + 2) * size
    return Need(stages * size, checkpoints * size, memory)


def room(subject: Subject) -> Iterator[Finding]:
    """There is room on the disk and in memory for what the run is sure to need."""
    if subject.recipe is None or "model" in subject.failed:
        return
    from sdzero.models import pick_device

    recipe = subject.recipe
    weights = weights_of(model_folder(recipe.model.path))
    on_gpu = pick_device(recipe.model.device).type == "cuda"
    parameters = parameters_of(weights)
    need = need_of(recipe, parameters, on_gpu)
    yield disk_finding(need, subject.folder or Path("runs") / recipe.name)
    yield memory_finding(need.memory, available_memory(), parameters)


def weights_of(folder: Path) -> list[Path]:
    """The weights of a whole model: of an adapter's folder those of the model that it is for, and its own."""
    adapter, index = folder / "adapter_config.json", folder / "model.safetensors.index.json"
    if index.is_file():  # some folders have the weights in another cut beside
        return [folder / name for name in names_in_index(index)]
    weights = sorted(folder.glob("*.safetensors"))
    if adapter.is_file() and not (folder / "config.json").is_file():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        return weights + weights_of(model_folder(str(base)))
    return weights


def disk_finding(need: Need, folder: Path) -> Finding:
    """Whether the disk under `folder` has room for models and checkpoints."""
    place = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    free, wanted = shutil.disk_usage(place).free, need.models + need.checkpoints
    detail = (
        f"{_size(free)} free in {place}; models and checkpoints take up to {_size(wanted)}"
        f" ({_size(need.models)} stay)"
    )
    todo = (
        "" if free >= wanted else "free some room, name another folder (--output), or keep fewer checkpoints"
    )
    return Finding("disk", free >= wanted, detail, todo)


def memory_finding(wanted: int, available: int | None, parameters: int) -> Finding:
    """Whether the host has memory for the weights and what goes with each."""
    needs = f"a model of {parameters:,} parameters needs {_size(wanted)} here, and more for activations"
    if available is None:
        return Finding("memory", True, f"{needs}; how much is free cannot be told")
    held = available >= wanted
    return Finding(
        "memory",
        held,
        f"{_size(available)} free; {needs}",
        "" if held else "use a GPU, LoRA (docs/lora.md), model.dtype=bfloat16 or a smaller model",
    )


def available_memory(info: Path = MEMORY_INFO, group: Path = CONTROL_GROUP) -> int | None:
    """Bytes of memory that new work can have: the kernel's figure, or less where a control group says so."""
    found = []
    for line in info.read_text().splitlines() if info.is_file() else ():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            found.append(int(value.split()[0]) * 1024)
    v1 = group / "memory"
    for limit, used, statistics in (
        (group / "memory.max", group / "memory.current", group / "memory.stat"),
        (v1 / "memory.limit_in_bytes", v1 / "memory.usage_in_bytes", v1 / "memory.stat"),
    ):
        if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
            found.append(max(0, int(text) - int(used.read_text()) + _reclaimable(statistics)))
    return min(found, default=None)


def _reclaimable(statistics: Path) -> int:
    """Bytes of files' pages that a control group counts as used, and gives up when memory is wanted."""
    rows = [line.split() for line in statistics.read_text().splitlines()] if statistics.is_file() else []
    values = {row[0]: int(row[1]) for row in rows if len(row) == 2}
    return values.get("total_inactive_file", values.get("inactive_file", 0))


def _size(count: int) -> str:
    return f"{count / GIBIBYTE:,.1f} GiB" if count >= GIBIBYTE // 10 else f"{count / (1 << 20):,.1f} MiB"
