"""A control group of one's own, where the machine allows it: memory and processes limited in total.

Limits of the kernel on a process (`setrlimit`) do not add up over its children; a control group's do. It
is made beside or below the group that this process is in, for which the system must have given it the
right: root has it, and so has a user whose session systemd has delegated. See `cgroups(7)`.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIX = "sdzero-"
EMPTY_WITHIN_SECONDS = 5.0
MEBIBYTE = 1 << 20
_numbers = itertools.count()


@dataclass
class ControlGroup:
    """A group for the programs of one process, made once and used for one program after another.

    `folders` are its folders: one with version 2 of control groups, one for each controller with version 1.
    """

    version: int
    folders: dict[str, Path]
    limits: tuple[int, int] = (0, 0)

    @property
    def doors(self) -> list[str]:
        """The files that a process writes `0` to, to join."""
        return [str(folder / "cgroup.procs") for folder in dict.fromkeys(self.folders.values())]

    def limit(self, memory_megabytes: int, processes: int) -> None:
        """Set both limits; `processes` counts threads too."""
        if (memory_megabytes, processes) == self.limits:
            return
        size, memory = str(memory_megabytes * MEBIBYTE), self.folders["memory"]
        if self.version == 2:
            (memory / "memory.max").write_text(size)
            with contextlib.suppress(FileNotFoundError):  # a machine without swap accounting
                (memory / "memory.swap.max").write_text("0")
        else:
            swap = memory / "memory.memsw.limit_in_bytes"
            with contextlib.suppress(FileNotFoundError):
                swap.write_text("-1")  # it may never be below the other limit
            (memory / "memory.limit_in_bytes").write_text(size)
            with contextlib.suppress(FileNotFoundError):
                swap.write_text(size)
        (self.folders["pids"] / "pids.max").write_text(str(processes))
        self.limits = (memory_megabytes, processes)

    def out_of_memory(self) -> int:
        """How many processes of the group the kernel has killed for want of memory so far."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        for line in (self.folders["memory"] / name).read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill":
                return int(value)
        return 0

    def processes(self) -> list[int]:
        """The processes in the group now."""
        return [int(line) for line in (self.folders["memory"] / "cgroup.procs").read_text().split()]

    def wait_for_others_than(self, stays: int) -> bool:
        """Wait for the processes but one that are on their way out; False if some do not go."""
        give_up = time.monotonic() + EMPTY_WITHIN_SECONDS
        while set(self.processes()) - {stays}:
            if time.monotonic() > give_up:
                return False
            time.sleep(0.001)
        return True

    def close(self) -> None:
        """Remove the group."""
        for folder in self.folders.values():
            with contextlib.suppress(OSError):  # busy: the next one to start removes it
                folder.rmdir()


def possible_groups(name: str) -> Iterator[ControlGroup]:
    """Groups made for the process that calls, told apart by `name`, the best first.

    Whether a process may join one, only trying tells; one that is not used must be closed.
    """
    for version, parents in _candidates():
        own = f"{PREFIX}{os.getpid()}-{next(_numbers)}-{name}"
        folders = {key: parent / own for key, parent in parents.items()}
        group = ControlGroup(version, folders)
        try:
            for parent in parents.values():
                _remove_stale(parent)
            for folder in folders.values():
                folder.mkdir(exist_ok=True)
            group.limit(64, 8)
        except OSError:  # not ours to make, or without these controllers
            group.close()
            continue
        yield group


def _candidates() -> list[tuple[int, dict[str, Path]]]:
    """Folders below which a group may be made, the likeliest first: (version, controller -> folder)."""
    mounts: dict[str, tuple[str, Path]] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, place = before.split(" ")[3:5]
        if kind == "cgroup2":
            mounts["2"] = (root, Path(place))
        elif kind == "cgroup":
            names = [name for name in options.split(",") if name in ("memory", "pids")]
            mounts |= dict.fromkeys(names, (root, Path(place)))
    own: dict[str, Path] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(",") if controllers else ["2"]:
            if controller in mounts and (folder := _folder(*mounts[controller], path)):
                own[controller] = folder
    found: list[tuple[int, dict[str, Path]]] = []
    if "2" in own:
        # A group with processes of its own cannot have limited children: then beside it.
        for folder in (own["2"], own["2"].parent):
            if folder.is_relative_to(mounts["2"][1]):
                found.append((2, {"memory": folder, "pids": folder}))
    if {"memory", "pids"} <= own.keys():
        found.append((1, {key: own[key] for key in ("memory", "pids")}))
    return found


def _folder(root: str, place: Path, path: str) -> Path | None:
    """Where a group's folder is, if the part of the tree below `root`, mounted at `place`, holds it."""
    if ".." in Path(path).parts or not Path(path).is_relative_to(root):
        return None
    return place / Path(path).relative_to(root)


def _remove_stale(parent: Path) -> None:
    """Remove groups of processes that are gone: a worker that was killed could not do it."""
    for folder in parent.glob(f"{PREFIX}*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(OSError):
                folder.rmdir()
