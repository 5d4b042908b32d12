"""Make a bundle: one folder with all that a recipe needs on a machine that has no network.

In it are wheels of sdzero and of what it needs, the model, the data, the recipe with paths in the folder,
licences, a list of parts (SBOM), a list of sums, and a script that installs from nothing else. It is made
beside, under the name `FOLDER.partial`, and renamed when it is whole. Interrupted, the same command goes on.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from sdzero.errors import UserError
from sdzero.onprem import bundle_check, bundle_files, licences, sbom, wheels
from sdzero.onprem.bundle_check import FACTS_NAME, SCHEMA, SUMS_NAME, find_faults, read_facts, read_sums
from sdzero.onprem.bundle_files import Journal, check_model, copies_of, copy_any, files_below, sum_of
from sdzero.onprem.bundle_recipe import Need, extras_of, needs_of, within_bundle
from sdzero.onprem.wheel_metadata import Target, closure_of, read_wheels
from sdzero.onprem.wheels import Report
from sdzero.recipe import Recipe
from sdzero.recipe_io import dump_recipe
from sdzero.run_lock import release_lock, take_lock

MAKING, PLAN_NAME, PACKAGES_NAME, JOURNAL_NAME = ".making", "plan.json", "packages.json", "journal.jsonl"
"""What is kept in the folder only while it is made."""
REQUIREMENTS_NAME, RECIPE_NAME, SMOKE_NAME, INSTALL_NAME = (
    "requirements.txt",
    "recipe.yaml",
    "smoke.yaml",
    "install.sh",
)
GIGABYTE = 1e9


@dataclass(frozen=True)
class Order:
    """What is to be bundled. `source` is sdzero's source tree or its wheel; `constraints` a file for pip."""

    recipe: Recipe
    target: Target
    source: Path
    constraints: Path | None
    fetch: bundle_files.HubFetch = bundle_files.fetch_from_hub


def default_source() -> Path:
    """The source tree that sdzero runs from. Raises UserError if it was installed as a wheel."""
    tree = Path(str(files("sdzero"))).parent.parent
    if not (tree / "pyproject.toml").is_file():
        raise UserError(
            "sdzero runs from an installed package here, and its own wheel is not at hand",
            str(tree),
            "name its wheel, or its source tree, in --source",
        )
    return tree


def make_bundle(order: Order, folder: Path, report: Report) -> str:
    """Make the bundle, or go on with it; gives the SHA-256 of its list of sums.

    A finished bundle of the same things is checked; what is damaged in it is made again.

    Raises:
        UserError: something that the recipe names is not there or cannot be fetched; the folder cannot be
            written, or holds something else.
    """
    sbom.require_library()
    if not order.source.is_file() and not (order.source / "pyproject.toml").is_file():
        raise UserError(
            "this is neither sdzero's wheel nor its source tree", str(order.source), "name one in --source"
        )
    needs = needs_of(order.recipe)
    plan = _plan_of(order, needs)
    try:
        if folder.exists() and _is_whole(folder, needs, plan, report):
            return sum_of(folder / SUMS_NAME)
        partial = folder.with_name(f"{folder.name}.partial")
        making = partial / MAKING
        making.mkdir(parents=True, exist_ok=True)
        lock = take_lock(making)
        try:
            _begin(making, plan)
            _fill(order, needs, plan, partial, report)
            digest = bundle_check.write_sums(partial, without=MAKING)
            os.replace(partial, folder)
            shutil.rmtree(folder / MAKING)
            return digest
        finally:
            release_lock(lock)
    except OSError as error:
        raise UserError(
            f"the bundle cannot be written ({error.strerror or error})",
            str(error.filename or folder),
            "check the disk's free space and the permissions; the same command then goes on",
        ) from error


def _plan_of(order: Order, needs: Sequence[Need]) -> dict[str, Any]:
    """What decides the content of a bundle: two of the same plan are interchangeable."""
    constraints = None if order.constraints is None else sum_of(order.constraints)
    return {
        "recipe": hashlib.sha256(dump_recipe(within_bundle(order.recipe, list(needs))).encode()).hexdigest(),
        "sources": sorted(f"{need.key}: {need.source}" for need in needs),
        "platform": order.target.platform,
        "python": order.target.python_version,
        "constraints": constraints,
        "extras": extras_of(order.recipe),
        "sdzero": _sum_of_source(order.source),
    }


def _sum_of_source(source: Path) -> str:
    if source.is_file():
        return sum_of(source)
    digest = hashlib.sha256()
    for file in [source / "pyproject.toml", *files_below(source / "src")]:
        if file.suffix != ".pyc" and not any(part.endswith(".egg-info") for part in file.parts):
            digest.update(f"{file.relative_to(source)} {sum_of(file)}\n".encode())
    return digest.hexdigest()


def _is_whole(folder: Path, needs: Sequence[Need], plan: dict[str, Any], report: Report) -> bool:
    """Whether there is a finished bundle of this plan. One that is damaged, or whose sources have changed
    since, becomes the beginnings of a new one."""
    if not folder.is_dir() or not (folder / FACTS_NAME).is_file():
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            return False
        raise UserError(
            "there is something else here already", str(folder), "choose a new or empty folder as --output"
        )
    facts = read_facts(folder)
    if facts["plan"] != plan:
        raise UserError(
            "there is a bundle of something else here already (another recipe, platform, version or source)",
            str(folder),
            "choose another --output, or remove it",
        )
    shutil.rmtree(folder / MAKING, ignore_errors=True)  # of a process that was killed at the very end
    faults, sums = find_faults(folder), read_sums(folder)
    if not faults and not _have_changed(needs, folder, sums):
        report("the bundle is here already, and whole")
        return True
    if faults:
        report(f"{len(faults)} files of the bundle are not as they were made; they are made again")
    else:
        report("the model or the data have changed since the bundle was made")
    for fault in faults:
        (folder / fault.path).unlink(missing_ok=True)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    os.replace(folder, partial)
    journal = Journal(partial, partial / MAKING / JOURNAL_NAME)
    damaged = {fault.path for fault in faults}
    for path, sha256 in sums.items():
        if path not in damaged:
            journal.note(partial / path, sha256=sha256)
    (partial / MAKING / PLAN_NAME).write_text(json.dumps(plan))
    (partial / MAKING / PACKAGES_NAME).write_text(json.dumps(facts["packages"]))
    return False


def _have_changed(needs: Sequence[Need], folder: Path, sums: Mapping[str, str]) -> bool:
    """Whether what was copied is another thing by now. What came from the hub is not looked for again."""
    for need in (one for one in needs if not one.is_on_hub):
        copies = copies_of(Path(need.source), folder / need.place, need.kind == "model")
        expected = {str(copy.relative_to(folder)): sum_of(source) for copy, source in copies.items()}
        if any(sums.get(path) != sha256 for path, sha256 in expected.items()):
            return True
        if any(path not in expected for path in sums if Path(need.place) in Path(path).parents):
            return True
    return False


def _begin(making: Path, plan: dict[str, Any]) -> None:
    """Raise UserError if the folder holds the beginnings of a bundle of something else."""
    file = making / PLAN_NAME
    if file.exists():
        if json.loads(file.read_text()) != plan:
            raise UserError(
                "the folder holds the beginnings of a bundle of something else (another recipe, platform,"
                " version or source)",
                str(making.parent),
                "remove it, or choose another --output",
            )
        return
    strangers = [entry.name for entry in making.parent.iterdir() if entry.name != MAKING]
    if strangers:
        shutil.rmtree(making)
        raise UserError(
            f"the folder is not empty ({strangers[0]})", str(making.parent), "choose another --output"
        )
    file.write_text(json.dumps(plan))


def _fill(order: Order, needs: Sequence[Need], plan: dict[str, Any], bundle: Path, report: Report) -> None:
    for torn in bundle.rglob(f".*{bundle_files.COPYING}"):
        torn.unlink()
    journal = Journal(bundle, bundle / MAKING / JOURNAL_NAME)
    for need in needs:
        report(f"{need.key}: {need.source}")
        left_out = bring(need, bundle / need.place, journal, order.fetch)
        if left_out:
            report(f"  left out, for weights come in safetensors: {', '.join(left_out)}")
    packages = _gather_wheels(order, plan["extras"], bundle / "wheels", journal, report)
    built_here = {row["name"] for row in packages if row["is_source"]}
    found = read_wheels(bundle / "wheels")
    closure = closure_of(found, "sdzero", plan["extras"], order.target)
    if closure.missing:
        raise UserError(
            "the wheels do not fit together on the target: " + "; ".join(closure.missing),
            str(bundle / "wheels"),
            f"make the bundle with Python {plan['python']} on a machine of the same kind: pip decides what is"
            " needed by the machine that it runs on",
        )
    unneeded = {wheel.name for wheel in found} - set(closure.needs) - {"pip"}
    for wheel in (one for one in found if one.name in unneeded):
        wheel.file.unlink()  # of another version, from a run before
    found = [wheel for wheel in found if wheel.name not in unneeded]
    pins = [f"{one.name}=={one.version} --hash=sha256:{sum_of(one.file)}\n" for one in found]
    (bundle / REQUIREMENTS_NAME).write_text("".join(pins), encoding="utf-8")
    recipe = within_bundle(order.recipe, list(needs))
    (bundle / RECIPE_NAME).write_text(dump_recipe(recipe), encoding="utf-8")
    glibc = _oldest_glibc(order.target, [one for one in found if one.name in built_here])
    for name, text in _written_files(order.target, glibc, recipe.name).items():
        (bundle / name).write_text(text, encoding="utf-8")
    (bundle / INSTALL_NAME).chmod(0o755)
    models = [bundle / place for place in _places(needs, "model")]
    licences.write_licences(bundle, found, models)
    data = [bundle / place for place in (*_places(needs, "dataset"), *_places(needs, "code"))]
    parts = sbom.Parts(found, closure.needs, models, data)
    (bundle / sbom.NAME).write_text(sbom.sbom_text(bundle, parts), encoding="utf-8")
    facts = {
        "schema": SCHEMA,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "sdzero": str(next(one.version for one in found if one.name == "sdzero")),
        "target": asdict(order.target) | {"glibc": glibc},
        "packages": packages,
        "needs": [asdict(need) for need in needs],
        "plan": plan,
    }
    (bundle / FACTS_NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    report(f"{len(found)} packages, {bundle_check.bytes_below(bundle) / GIGABYTE:.2f} GB")


def _places(needs: Sequence[Need], kind: str) -> list[str]:
    return list(dict.fromkeys(need.place for need in needs if need.kind == kind))


def bring(need: Need, to: Path, journal: Journal, fetch: bundle_files.HubFetch) -> list[str]:
    """Copy or fetch one thing; gives the files that were left out."""
    if not need.is_on_hub:
        return copy_any(Path(need.source), to, journal, is_model=need.kind == "model")
    to.mkdir(parents=True, exist_ok=True)
    fetch(need.source, need.kind, to)
    if need.kind == "model":
        check_model(to, need.source)
    return []


def _gather_wheels(
    order: Order, extras: Sequence[str], folder: Path, journal: Journal, report: Report
) -> list[dict[str, Any]]:
    """Bring all wheels into the folder; gives the packages besides sdzero, as they are noted in the facts."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("sdzero-*.whl"):
        old.unlink()
    own = wheels.build_own_wheel(order.source, folder)
    journal.note(own)
    resolved = folder.parent / MAKING / PACKAGES_NAME
    if resolved.exists():
        packages = [wheels.Package(**row) for row in json.loads(resolved.read_text())]
    else:
        report("versions of all packages, by pip")
        packages = wheels.resolve(own, extras, order.constraints)
        resolved.write_text(json.dumps([asdict(one) for one in packages]))
    report(f"{len(packages)} packages for {order.target.platform}, Python {order.target.python_version}")
    wheels.gather(packages, order.target, folder, resolved.parent, journal, report)
    return [asdict(one) for one in packages]


def _oldest_glibc(target: Target, built_here: Sequence[Any]) -> tuple[int, int]:
    """The glibc that the other side needs: the target's, or this machine's if code was compiled here."""
    compiled = any(tag.platform != "any" for wheel in built_here for tag in wheel.tags)
    if not compiled:
        return target.glibc
    major, minor = os.confstr("CS_GNU_LIBC_VERSION").split()[1].split(".")[:2]  # type: ignore[union-attr]
    return max(target.glibc, (int(major), int(minor)))


def _written_files(target: Target, glibc: tuple[int, int], name: str) -> dict[str, str]:
    """install.sh, README.md and the recipe of the smoke run."""
    values = {
        "machine": target.machine,
        "glibc_major": str(glibc[0]),
        "glibc_minor": str(glibc[1]),
        "python": target.python_version,
        "name": name,
    }
    kept = files("sdzero") / "onprem" / "airgap"
    found = {}
    for file in (INSTALL_NAME, "README.md", SMOKE_NAME):
        text = (kept / file).read_text(encoding="utf-8")
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        found[file] = text
    return found
