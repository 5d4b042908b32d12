"""Wheels as files: what they are, what they need, and whether a folder of them is complete for a target."""

import itertools
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.metadata import RawMetadata, parse_email
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from sdzero.errors import UserError

LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
"""Older names of manylinux_2_17, 2_12 and 2_5 (PEP 600)."""
OLDEST_GLIBC = 5
MACHINES = ("x86_64", "aarch64", "ppc64le", "s390x", "riscv64", "loongarch64", "i686", "armv7l")
"""Processors that manylinux platforms are named for, as `uname -m` calls them."""


@dataclass(frozen=True)
class Target:
    """The machines that a bundle is for: a manylinux platform (PEP 600) and a version of CPython."""

    machine: str
    glibc: tuple[int, int]
    python: tuple[int, int]

    @classmethod
    def parse(cls, platform: str, python: str) -> "Target":
        """Of names such as `manylinux_2_28_x86_64` and `3.11`. Raises UserError for others."""
        found = re.fullmatch(r"manylinux_(\d+)_(\d+)_([a-z0-9_]+)", platform)
        if found is None or found[1] != "2" or found[3] not in MACHINES:
            raise UserError(
                f"`{platform}` is no platform that a bundle can be made for",
                "--platform",
                "name a manylinux platform such as manylinux_2_28_x86_64: glibc 2.28 or newer on x86_64;"
                f" processors are {', '.join(MACHINES)}",
            )
        version = re.fullmatch(r"3\.(\d+)", python)
        if version is None or int(version[1]) < 11:
            raise UserError(
                f"`{python}` is no version of Python that sdzero runs on", "--python", "name 3.11 or newer"
            )
        return cls(found[3], (2, int(found[2])), (3, int(version[1])))

    @property
    def platform(self) -> str:
        """The name of the platform."""
        return f"manylinux_2_{self.glibc[1]}_{self.machine}"

    @property
    def python_version(self) -> str:
        """The version of Python, such as `3.11`."""
        return ".".join(map(str, self.python))

    @property
    def platforms(self) -> list[str]:
        """The tags of platforms whose wheels run on the target, the newest first."""
        found = []
        for minor in range(self.glibc[1], OLDEST_GLIBC - 1, -1):
            found.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in LEGACY:
                found.append(f"{LEGACY[minor]}_{self.machine}")
        return found

    def runs(self, tags: Iterable[Tag], built_here: bool = False) -> bool:
        """Whether a wheel with these tags can be installed on the target. A wheel that was built on this
        machine has the plain tag `linux_...`."""
        platforms = [*self.platforms, *([f"linux_{self.machine}"] if built_here else [])]
        own = {*cpython_tags(self.python, platforms=platforms, abis=[f"cp{self.python[0]}{self.python[1]}"])}
        own |= {*compatible_tags(self.python, f"cp{self.python[0]}{self.python[1]}", platforms)}
        return not own.isdisjoint(tags)

    @property
    def environment(self) -> dict[str, str]:
        """The values of environment markers (PEP 508) on the target."""
        here = {key: str(value) for key, value in default_environment().items()}
        python = self.python_version
        same = here["python_version"] == python
        return here | {
            "python_version": python,
            "python_full_version": here["python_full_version"] if same else f"{python}.0",
            "implementation_version": here["implementation_version"] if same else f"{python}.0",
            "platform_machine": self.machine,
            "platform_system": "Linux",
            "sys_platform": "linux",
            "os_name": "posix",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
        }


@dataclass(frozen=True)
class Wheel:
    """One wheel. `name` is the normalised one (PEP 503)."""

    file: Path
    name: str
    version: Version
    tags: frozenset[Tag]
    metadata: RawMetadata = field(repr=False, hash=False, compare=False)

    @classmethod
    def read(cls, file: Path) -> "Wheel":
        """Raises UserError if the file is no whole wheel."""
        try:
            name, version, _, tags = parse_wheel_filename(file.name)
            with zipfile.ZipFile(file) as content:
                (place,) = (n for n in content.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
                metadata, _ = parse_email(content.read(place))
        except (InvalidWheelFilename, zipfile.BadZipFile, ValueError, KeyError) as fault:
            raise UserError(
                f"this is no whole wheel ({fault})", str(file), "remove it, and run the same command again"
            ) from fault
        return cls(file, str(name), version, tags, metadata)

    @property
    def requirements(self) -> list[Requirement]:
        """What it asks for, markers and extras included."""
        return [Requirement(line) for line in self.metadata.get("requires_dist", [])]


def read_wheels(folder: Path) -> list[Wheel]:
    """Every wheel of a folder, by name. Raises UserError if a package is there twice."""
    found = sorted((Wheel.read(file) for file in folder.glob("*.whl")), key=lambda wheel: wheel.name)
    for one, other in itertools.pairwise(found):
        if one.name == other.name:
            raise UserError(
                f"the package {one.name} is there twice: {one.file.name}, {other.file.name}",
                str(folder),
                "remove one of them",
            )
    return found


@dataclass(frozen=True)
class Closure:
    """What follows from a root: `needs` by package; `missing` are sentences about what no wheel gives."""

    needs: Mapping[str, Sequence[str]]
    missing: Sequence[str]


def closure_of(wheels: Sequence[Wheel], root: str, extras: Iterable[str], target: Target) -> Closure:
    """Follow the requirements of the package `root` with these extras, as they hold on the target."""
    by_name = {wheel.name: wheel for wheel in wheels}
    markers = target.environment
    needs: dict[str, set[str]] = {}
    missing: list[str] = []
    followed: set[tuple[str, str]] = set()
    waiting: list[tuple[str, str]] = [(root, extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in followed:
            continue
        followed.add((name, extra))
        own = needs.setdefault(name, set())
        for wanted in by_name[name].requirements:
            environment: Any = markers | {"extra": extra}
            if wanted.marker is not None and not wanted.marker.evaluate(environment):
                continue
            wheel = by_name.get(canonicalize_name(wanted.name))
            if wheel is None or not wanted.specifier.contains(wheel.version, prereleases=True):
                there = "there is none" if wheel is None else f"there is {wheel.version}"
                missing.append(f"{name} needs {wanted.name}{wanted.specifier}, and {there}")
                continue
            own.add(wheel.name)
            waiting += [(wheel.name, one) for one in ("", *sorted(wanted.extras))]
    return Closure({name: sorted(own) for name, own in needs.items()}, sorted(set(missing)))
