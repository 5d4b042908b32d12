"""`sdzero doctor` on GPUs: what PyTorch sees, with which CUDA and driver, and whether its build fits them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdzero.onprem.findings import Finding, Subject, warning
from sdzero.onprem.hardware import GIBIBYTE

DRIVER = Path("/proc/driver/nvidia/version")


def gpu(subject: Subject) -> Iterator[Finding]:
    """The device that the recipe asks for is there, and PyTorch can use it."""
    if subject.recipe is None:
        return
    import torch

    asked = subject.recipe.model.device
    if asked == "cpu":
        yield Finding("device", True, "cpu, as the recipe says")
        return
    if not torch.cuda.is_available():
        yield _without(asked, DRIVER.is_file(), torch.version.cuda)
        return
    versions = f"CUDA {torch.version.cuda}, {driver_text(torch)}"
    for number in range(torch.cuda.device_count()):
        yield _device(torch, number, versions, subject.recipe.model.dtype)


def _without(asked: str, has_driver: bool, cuda: str | None) -> Finding:
    why = (
        f"there is an NVIDIA driver, but this PyTorch {'cannot use it' if cuda else 'is built without CUDA'}"
        if has_driver
        else "there is no GPU that PyTorch can use"
    )
    install = "install a build of PyTorch for your driver's CUDA (pytorch.org/get-started)"
    if asked == "cuda":
        todo = f"{install}, or set model.device=cpu" if has_driver else "set model.device=cpu"
        return Finding("device", False, why, todo)
    if has_driver:
        return warning("device", f"{why}: the run would be on the CPU", install)
    return Finding("device", True, f"cpu: {why}")


def driver_text(torch: Any) -> str:
    """Which CUDA the driver can run at most; the driver's own number where the kernel tells it."""
    number = int(torch._C._cuda_getDriverVersion())
    text = f"driver for CUDA {number // 1000}.{number % 1000 // 10}"
    if DRIVER.is_file():
        words = DRIVER.read_text().splitlines()[0].split()
        own = next((word for word in words if word[0].isdigit() and "." in word), None)
        text = f"{text} ({own})" if own else text
    return text


def _device(torch: Any, number: int, versions: str, dtype: str) -> Finding:
    found = torch.cuda.get_device_properties(number)
    name = f"device cuda:{number}"
    detail = f"{found.name}, {found.total_memory / GIBIBYTE:.1f} GiB, {versions}"
    own = (found.major, found.minor)
    if not runs_on(own, torch.cuda.get_arch_list()):
        return Finding(
            name,
            False,
            f"{detail}: this PyTorch has no code for its architecture sm_{own[0]}{own[1]}",
            "install a build of PyTorch that has (pytorch.org/get-started), or set model.device=cpu",
        )
    if dtype == "bfloat16" and own < (8, 0):
        return warning(
            name, f"{detail}: bfloat16 is emulated, and slow", "set model.dtype=float32 if memory allows"
        )
    return Finding(name, True, detail)


def runs_on(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Whether a build with this list (`sm_80`, `compute_90`, ...) runs on a GPU of this compute capability.

    Machine code (sm) runs on the same major number and the same or a higher minor one; `compute` is compiled
    by the driver for whatever is newer.
    """
    for architecture in architectures:
        kind, _, digits = architecture.partition("_")
        digits = digits.rstrip("af")
        if not digits.isdigit():
            continue
        own = int(digits[:-1]), int(digits[-1])
        if (kind == "compute" and own <= capability) or (
            kind == "sm" and own[0] == capability[0] and own[1] <= capability[1]
        ):
            return True
    return False
