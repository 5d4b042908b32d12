"""What is on this machine, for tests that nothing is left behind. Linux only, as sandboxes are."""

import contextlib
import os
from pathlib import Path

from sdzero.verify.attack_scene import running_with as running_with
from sdzero.verify.cgroups import PREFIX

CONTROL_GROUPS = Path("/sys/fs/cgroup")


def open_descriptors() -> set[str]:
    """What this process has open: numbers and what they lead to; sockets and pipes are told apart."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return found


def children_of(process: int) -> set[int]:
    """The processes whose parent it is, those that have ended and are not buried included."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                # The name, in brackets, may hold spaces; the parent comes second after it.
                after = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if int(after[1]) == process:
                    found.add(int(entry))
    return found


def groups_of(process: int) -> list[Path]:
    """The control groups that a sandbox of this process has made and not removed."""
    return sorted(CONTROL_GROUPS.rglob(f"{PREFIX}{process}-*"))


def memory_megabytes(process: int) -> float:
    """What it holds in memory (its resident set)."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {process} has no memory")


def sandboxed_processes() -> set[tuple[int, str]]:
    """The processes of other namespaces, and those of bubblewrap that nobody has buried: (number, start)."""
    found, own = set(), os.readlink("/proc/self/ns/pid")
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):  # it has ended meanwhile, or is not ours to look at
                before, _, after = Path(f"/proc/{entry}/stat").read_text().rpartition(")")
                fields = after.split()
                ended = fields[0] == "Z"
                if before.endswith("(bwrap") if ended else os.readlink(f"/proc/{entry}/ns/pid") != own:
                    found.add((int(entry), fields[19]))
    return found
