"""Gather the wheels of sdzero and of all that it needs, for a target, with pip.

pip takes packages from wherever the user has set it up to (its configuration and environment); nothing is
named here. In turn: the versions are resolved under the constraints; what is published as source only is
built here; the rest is downloaded as wheels of the target. What is there already, with the sum that it was
written with, is not fetched again.

Sources: https://pip.pypa.io/en/stable/cli/pip_download/, the report of `pip install --dry-run`
(https://pip.pypa.io/en/stable/reference/installation-report/), PEP 600.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import Version

from sdzero.errors import UserError
from sdzero.onprem.bundle_files import Journal
from sdzero.onprem.wheel_metadata import Target, Wheel

BATCH = 8
"""Wheels of one call of pip: what a bundle that is interrupted loses at most."""
LINES_SHOWN = 12
SETUPTOOLS = "77.0.3"
"""The oldest setuptools that can build sdzero (pyproject.toml)."""
MADE_AT = "1577836800"
"""The date in a wheel that is built here, so that the same source gives the same bytes."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Package:
    """A package as it was resolved. `is_source`: there is no wheel of it for the machine that resolved."""

    name: str
    version: str
    is_source: bool


def run_pip(
    arguments: Sequence[str], what: str, todo: str, environment: Mapping[str, str] | None = None
) -> str:
    """Run pip of this Python; what it printed. Raises UserError with its last lines if it fails."""
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | dict(environment or {}), check=False
    )
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        shown = "".join(f"\n  | {line}" for line in lines[-LINES_SHOWN:])
        raise UserError(f"{what}:{shown}", f"pip {arguments[0]}", todo)
    return done.stdout


def build_own_wheel(source: Path, folder: Path) -> Path:
    """The wheel of sdzero itself: built from a source tree, or `source` if it is a wheel; in `folder`.

    The tree is copied first: setuptools builds within it, and would take in what an older build left there.
    """
    if source.suffix == ".whl":
        return Path(shutil.copy2(source, folder))
    if not (source / "pyproject.toml").is_file():
        raise UserError(
            "this is no source of sdzero: there is no pyproject.toml", str(source), "name one in --source"
        )
    with tempfile.TemporaryDirectory() as place:
        tree = Path(place) / "sdzero"
        tree.mkdir()
        for name in ("pyproject.toml", "LICENSE"):
            shutil.copy(source / name, tree)
        shutil.copytree(
            source / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
        isolation = ["--no-build-isolation"] if _has_setuptools() else []
        run_pip(
            ["wheel", "--no-deps", *isolation, "--wheel-dir", str(Path(place) / "built"), str(tree)],
            "the wheel of sdzero cannot be built",
            "see pip's words above",
            {"SOURCE_DATE_EPOCH": MADE_AT},
        )
        (built,) = (Path(place) / "built").glob("sdzero-*.whl")
        return Path(shutil.copy2(built, folder))


def _has_setuptools() -> bool:
    try:
        return Version(metadata.version("setuptools")) >= Version(SETUPTOOLS)
    except metadata.PackageNotFoundError:
        return False


def pip_version() -> str:
    """The version of pip here: the bundle brings it along, so that the other side needs none.

    Raises UserError if this Python has no pip.
    """
    try:
        return metadata.version("pip")
    except metadata.PackageNotFoundError:
        raise UserError(
            "this Python has no pip, which gathers the wheels",
            sys.executable,
            "install it (python -m ensurepip), or run sdzero from an environment that has it",
        ) from None


def resolve(own: Path, extras: Sequence[str], constraints: Path | None) -> list[Package]:
    """The versions of all packages, sdzero itself left out. Raises UserError if pip finds none that fit."""
    wanted = f"sdzero[{','.join(extras)}] @ {own.resolve().as_uri()}" if extras else str(own)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "report.json"
        run_pip(
            [
                *("install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(file)),
                *(() if constraints is None else ("--constraint", str(constraints))),
                *(wanted, f"pip=={pip_version()}"),
            ],
            "pip finds no versions of the packages that fit together",
            "see pip's words above; pip's index and the constraints are yours to set (--constraints)",
        )
        rows = json.loads(file.read_text(encoding="utf-8"))["install"]
    return [one for one in map(_package_of, rows) if one.name != "sdzero"]


def _package_of(row: Mapping[str, Any]) -> Package:
    url = str(row["download_info"]["url"]).partition("#")[0]
    return Package(
        canonicalize_name(row["metadata"]["name"]), row["metadata"]["version"], not url.endswith(".whl")
    )


def gather(
    packages: Sequence[Package],
    target: Target,
    folder: Path,
    scratch: Path,
    journal: Journal,
    report: Report,
) -> None:
    """Bring a wheel of each package into `folder`, whole: pip works in `scratch`, on the same disk.

    Raises UserError for a package that has no wheel for the target, and for one that was built here and does
    not run there.
    """
    there = {(wheel.name, wheel.version) for wheel in _whole_wheels(folder, journal)}
    missing = [one for one in packages if (one.name, Version(one.version)) not in there]
    if missing and len(missing) < len(packages):
        report(f"  {len(packages) - len(missing)} wheels are here already")
    for package in (one for one in missing if one.is_source):
        report(f"  {package.name} {package.version}: no wheel is published, so it is built here")
        _take(_build(package, folder, scratch), target, journal, built_here=True)
    fetched = [one for one in missing if not one.is_source]
    for start in range(0, len(fetched), BATCH):
        batch = fetched[start : start + BATCH]
        report(f"  {', '.join(f'{one.name} {one.version}' for one in batch)}")
        for file in _download(batch, target, folder, scratch):
            _take(file, target, journal, built_here=False)


def _whole_wheels(folder: Path, journal: Journal) -> Iterator[Wheel]:
    """The wheels of the folder that are as they were written; others are removed."""
    for file in sorted(folder.glob("*.whl")):
        if journal.holds(file):
            yield Wheel.read(file)
        elif not file.name.startswith("sdzero-"):
            file.unlink()


def _take(file: Path, target: Target, journal: Journal, built_here: bool) -> None:
    if not target.runs(Wheel.read(file).tags, built_here):
        raise UserError(
            f"{file.name} does not run on {target.platform} with Python {target.python_version}",
            "--platform, --python",
            "make the bundle with that Python version on a machine of the same kind",
        )
    journal.note(file)


def _build(package: Package, folder: Path, scratch: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        run_pip(
            [
                *("wheel", "--no-deps", "--no-binary", package.name, "--wheel-dir", place),
                f"{package.name}=={package.version}",
            ],
            f"{package.name} {package.version} is published as source only and cannot be built here",
            "see pip's words above; a compiler and Python's header files may be missing",
        )
        (built,) = Path(place).glob("*.whl")
        return Path(shutil.move(built, folder / built.name))


def _download(batch: Sequence[Package], target: Target, folder: Path, scratch: Path) -> list[Path]:
    python = target.python_version
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        run_pip(
            [
                *("download", "--no-deps", "--only-binary", ":all:", "--dest", place, "--quiet"),
                *("--implementation", "cp", "--python-version", python),
                *(word for platform in target.platforms for word in ("--platform", platform)),
                *(f"{one.name}=={one.version}" for one in batch),
            ],
            f"a package has no wheel for {target.platform}, Python {python}, or cannot be fetched",
            "see pip's words above; name another --platform or --python, or a version that has one in the"
            " constraints",
        )
        return [Path(shutil.move(file, folder / file.name)) for file in sorted(Path(place).glob("*.whl"))]
