"""What a plan computes with: devices by name, from the makers' data sheets, or from the user's own file."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from sdzero.errors import UserError, unknown_name
from sdzero.recipe_base import Settings

GIBIBYTE = 1 << 30
GB = 10**9
"""Data sheets count in powers of ten. What a device has beyond (80 GB of an H100 are 85 * 10^9 bytes) is left
as a margin."""


@dataclass(frozen=True)
class Device:
    """One GPU, or a CPU. Bytes, operations and bytes a second, watts.

    `peak` is of dense bfloat16 products, `peak_float32` of float32 ones without TF32, which PyTorch leaves
    off. `host_watts` is what the machine takes beside, for each device. `source` says where all that is from.
    """

    name: str
    memory: float
    peak: float
    peak_float32: float
    bandwidth: float
    watts: float
    host_watts: float
    source: str
    kind: Literal["cuda", "cpu"] = "cuda"


def _device(
    name: str,
    memory: float,
    tflops: float,
    tflops_float32: float,
    gigabytes_a_second: float,
    watts: float,
    host_watts: float,
    source: str,
    kind: Literal["cuda", "cpu"] = "cuda",
) -> Device:
    peaks = tflops * 1e12, tflops_float32 * 1e12
    return Device(name, memory * GB, *peaks, gigabytes_a_second * GB, watts, host_watts, source, kind)


DGX_H100 = "host: DGX H100 data sheet, 10.2 kW at most with eight"
NO_HOST = "host: not in it"
A100 = "NVIDIA A100 data sheet 1758950-r4 (SXM); host: DGX A100 data sheet, 6.5 kW at most with eight"
B200 = "NVIDIA DGX B200 and HGX B200 data sheets; host: DGX B200, 14.3 kW at most with eight"
RTX = f"with accumulation in float32; {NO_HOST}"

DEVICES = {
    device.name: device
    for device in (
        _device("H100-80GB", 80, 989, 67, 3350, 700, 575, f"NVIDIA H100 data sheet (SXM); {DGX_H100}"),
        _device("H100-PCIe-80GB", 80, 756, 51, 2000, 350, 0, f"NVIDIA H100 data sheet (PCIe); {NO_HOST}"),
        _device("H200-141GB", 141, 989, 67, 4800, 700, 575, f"NVIDIA H200 data sheet (SXM); {DGX_H100}"),
        _device("B200-180GB", 180, 2250, 75, 8000, 1000, 787, B200),
        _device("A100-80GB", 80, 312, 19.5, 2039, 400, 412, A100),
        _device("A100-40GB", 40, 312, 19.5, 1555, 400, 412, A100),
        _device("L40S-48GB", 48, 362, 91.6, 864, 350, 0, f"NVIDIA L40S data sheet; {NO_HOST}"),
        _device("L4-24GB", 24, 121, 30.3, 300, 72, 0, f"NVIDIA L4 data sheet; {NO_HOST}"),
        _device("RTX5090", 32, 209.5, 104.8, 1792, 575, 0, f"NVIDIA RTX Blackwell GPU Architecture, {RTX}"),
        _device("RTX4090", 24, 165.2, 82.6, 1008, 450, 0, f"NVIDIA Ada GPU Architecture, {RTX}"),
        _device("RTX3090", 24, 71, 35.6, 936, 350, 0, f"NVIDIA Ampere GA102 GPU Architecture, {RTX}"),
    )
}
"""By name. bfloat16 without sparsity: data sheets that give the figure with sparsity give twice this one."""

CORES, CORE_PEAK, CORE_WATTS = 128, 2.7e9 * 64, 500 / 128
"""Of an AMD EPYC 9755 (its product page: 128 cores, 2.7 GHz, 500 W); a core of Zen 5 makes two
multiplications with addition of 512 bits a cycle, 64 operations in float32."""
CORE_BANDWIDTH, SOCKET_BANDWIDTH = 20 * GB, 614 * GB
"""The second is its data sheet's; that one core draws at most the first is assumed."""


@dataclass(frozen=True)
class Hardware:
    """So many devices of one kind, in one machine or several."""

    device: Device
    count: int = 1

    @property
    def name(self) -> str:
        """As it is written: `8xH100-80GB`."""
        return self.device.name if self.device.kind == "cpu" else f"{self.count}x{self.device.name}"


def this_cpu() -> Device:
    """The cores that this process may use, and this machine's memory."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(
        "cpu",
        memory,
        cores * CORE_PEAK,
        cores * CORE_PEAK,
        min(cores * CORE_BANDWIDTH, SOCKET_BANDWIDTH),
        cores * CORE_WATTS,
        0.0,
        f"{cores} cores like those of an AMD EPYC 9755, with this machine's memory; host: not in it",
        "cpu",
    )


class HardwareFile(Settings):
    """The user's own hardware, as YAML: see docs/plan.md."""

    name: str
    count: int = Field(default=1, ge=1)
    kind: Literal["cuda", "cpu"] = "cuda"
    memory_gb: float = Field(gt=0)
    bf16_tflops: float = Field(gt=0)
    float32_tflops: float | None = Field(default=None, gt=0)
    bandwidth_gb_s: float = Field(gt=0)
    watts: float = Field(gt=0)
    host_watts: float = Field(default=0.0, ge=0)


def hardware_named(text: str) -> Hardware:
    """The hardware that `--hardware` names: `8xH100-80GB`, `cpu`, or a YAML file.

    Raises UserError for a name that is not known and a file that does not fit.
    """
    if text.endswith((".yaml", ".yml")):
        return _from_file(Path(text))
    found = re.fullmatch(r"(?:(\d+)\s*[xX*]\s*)?(\S+)", text.strip())
    count, name = (int(found[1] or 1), found[2]) if found else (1, text)
    if not count:
        raise UserError("no device computes nothing", "--hardware", f"write it like 8x{name}")
    if name.lower() == "cpu":
        return Hardware(this_cpu(), count)
    by_name = {known.lower(): device for known, device in DEVICES.items()}
    if name.lower() not in by_name:
        raise unknown_name("device", name, [*DEVICES, "cpu"], "--hardware")
    return Hardware(by_name[name.lower()], count)


def _from_file(file: Path) -> Hardware:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        own = HardwareFile.model_validate(values)
    except OSError as error:
        raise UserError(
            f"the hardware's file cannot be read ({error.strerror})", str(file), "check the path"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"this is not well-formed YAML: {error}", str(file), "mend the file") from None
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}"
            for one in error.errors(include_url=False)
        )
        keys = ", ".join(HardwareFile.model_fields)
        raise UserError(f"the hardware does not fit: {told}", str(file), f"its keys are {keys}") from None
    device = _device(
        own.name,
        own.memory_gb,
        own.bf16_tflops,
        own.float32_tflops or own.bf16_tflops,
        own.bandwidth_gb_s,
        own.watts,
        own.host_watts,
        str(file),
        own.kind,
    )
    return Hardware(device, own.count)
