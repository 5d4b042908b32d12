"""The most memory that this process has taken so far."""

import sys
from pathlib import Path


def peak_memory_bytes() -> int | None:
    """On a GPU what PyTorch has allocated at most, else the peak of resident memory; None where neither is
    known.

    Imports no torch: where it is not imported yet, nothing was allocated by it.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = status.read_text(encoding="utf-8").splitlines()
    peak = next((line for line in lines if line.startswith("VmHWM:")), None)
    return None if peak is None else int(peak.split()[1]) << 10
