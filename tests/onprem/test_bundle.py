"""A bundle from a tiny wheelhouse: what is in it, going on with it, and its installer."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdzero import tiny
from sdzero.errors import UserError
from sdzero.onprem import wheels
from sdzero.onprem.bundle import Order, make_bundle
from sdzero.onprem.bundle_check import find_faults, read_facts
from sdzero.onprem.bundle_files import sum_of
from sdzero.onprem.wheel_metadata import Target
from sdzero.recipe_io import load_recipe
from support import micro_recipe
from wheelhouse import fake_sdzero, make_wheelhouse, use_wheelhouse

pytest.importorskip(
    "cyclonedx", reason="bundles are made with the extra `bundle` (pip install 'sdzero[bundle]')"
)
pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.version_info[:2] != (3, 11), reason="the wheelhouse is for these"
)

TARGET = Target.parse("manylinux_2_28_x86_64", "3.11")
ROOT = Path(__file__).parents[2]


def order_of(place: Path, **changes: Any) -> Order:
    """The micro recipe with a model folder and a file of questions of its own."""
    model = place / "my-model"
    if not model.exists():
        shutil.copytree(tiny.model_folder(), model)
        (model / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n")
        (model / "pytorch_model.bin").write_bytes(b"pickled")
        rows = [{"question": f"{n} + {n} = ?", "answer": str(2 * n)} for n in range(80)]
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = {
        "model": {"path": str(model)},
        "data": {"source": "jsonl", "path": str(place / "rows.jsonl")},
    }
    recipe = load_recipe(micro_recipe(place, sections), ["online=true"])
    keys = {"recipe": recipe, "target": TARGET, "source": fake_sdzero(place / "own"), "constraints": None}
    return Order(**(keys | changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished bundle; tests only read it, or copy it."""
    place = tmp_path_factory.mktemp("bundling")
    with pytest.MonkeyPatch.context() as patch:
        use_wheelhouse(make_wheelhouse(place / "house"), patch)
        make_bundle(order_of(place), place / "bundle", lambda text: None)
        yield place / "bundle"


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copied bundle"))


def test_all_that_the_recipe_needs_is_in_the_folder(made: Path) -> None:
    assert find_faults(made) == []
    assert not (made / ".making").exists()
    assert not made.with_name("bundle.partial").exists()
    recipe = load_recipe(made / "recipe.yaml")
    assert recipe.model.path == "models/my-model"
    assert recipe.data.path == "data/rows.jsonl"
    assert recipe.online is False
    assert (made / "models/my-model/model.safetensors").is_file()
    assert not (made / "models/my-model/pytorch_model.bin").exists()
    names = sorted(file.name.partition("-")[0] for file in (made / "wheels").iterdir())
    assert names == ["native", "pip", "sdzero", "toy"]


def test_of_two_builds_the_one_that_runs_on_the_target_comes_along(made: Path) -> None:
    (native,) = made.glob("wheels/native-*.whl")
    assert native.name == "native-1.0-cp311-cp311-manylinux_2_17_x86_64.whl"


def test_every_package_is_pinned_with_its_sum(made: Path) -> None:
    lines = (made / "requirements.txt").read_text().splitlines()
    assert len(lines) == 4
    (toy,) = made.glob("wheels/toy-*.whl")
    assert f"toy==1.0 --hash=sha256:{sum_of(toy)}" in lines


def test_licences_are_a_table_and_texts(made: Path) -> None:
    table = (made / "licences/README.md").read_text()
    assert "| sdzero | 1.0 | Apache-2.0 | [1](sdzero-1.0) |" in table
    assert "| native | 1.0 | BSD License | none in its wheel |" in table
    assert "| models/my-model | apache-2.0 |" in table
    assert (made / "licences/sdzero-1.0/licenses/LICENSE").read_text() == "text\n"


def test_the_list_of_parts_is_valid_cyclonedx(made: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (made / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = json.loads(text)
    assert found["specVersion"] == "1.6"
    assert found["metadata"]["component"]["name"] == "sdzero"
    components = {one["name"]: one for one in found["components"]}
    assert components["toy"]["purl"] == "pkg:pypi/toy@1.0"
    (toy,) = made.glob("wheels/toy-*.whl")
    assert components["toy"]["hashes"] == [{"alg": "SHA-256", "content": sum_of(toy)}]
    assert components["models/my-model"]["type"] == "machine-learning-model"
    weights = sum_of(made / "models/my-model/model.safetensors")
    files = {one["name"]: one for one in components["models/my-model"]["components"]}
    assert files["models/my-model/model.safetensors"]["hashes"][0]["content"] == weights
    needs = {row["ref"]: row.get("dependsOn", []) for row in found["dependencies"]}
    assert needs["toy==1.0"] == ["native==1.0"]
    assert {"toy==1.0", "models/my-model", "data/rows.jsonl"} <= set(needs["sdzero==1.0"])


def test_the_facts_say_for_what_it_is(made: Path) -> None:
    facts = read_facts(made)
    assert facts["target"] == {"machine": "x86_64", "glibc": [2, 28], "python": [3, 11]}
    assert {row["name"]: row["is_source"] for row in facts["packages"]} == dict.fromkeys(
        ("native", "pip", "toy"), False
    )


# ---- going on ----


def count_pip(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of each call of pip from now on."""
    calls: list[str] = []
    run = wheels.run_pip

    def counted(arguments: Any, *rest: Any) -> str:
        calls.append(" ".join(arguments))
        return run(arguments, *rest)

    monkeypatch.setattr(wheels, "run_pip", counted)
    return calls


def test_a_finished_bundle_is_not_made_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, said = count_pip(monkeypatch), list[str]()
    before = sum_of(made / "SHA256SUMS")
    assert make_bundle(order_of(made.parent), made, said.append) == before
    assert said == ["the bundle is here already, and whole"]
    assert calls == []


def test_what_is_damaged_in_a_finished_bundle_is_made_again_and_nothing_else(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(made, made.parent / "damaged"))
    inode = (folder / "models/my-model/model.safetensors").stat().st_ino
    (toy,) = folder.glob("wheels/toy-*.whl")
    toy.write_bytes(toy.read_bytes()[:-7])
    (folder / "data/rows.jsonl").unlink()
    (folder / "stranger").write_text("?")
    calls = count_pip(monkeypatch)
    make_bundle(order_of(made.parent), folder, lambda text: None)
    assert find_faults(folder) == []
    assert not (folder / "stranger").exists()
    assert (folder / "models/my-model/model.safetensors").stat().st_ino == inode
    (download,) = calls  # versions are known, and the other wheels are there
    assert "toy==1.0" in download
    assert "native" not in download


def test_data_that_have_changed_come_along_anew(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = order_of(made.parent)
    rows = made.parent / "rows.jsonl"
    before = rows.read_bytes()
    folder, calls, said = Path(shutil.copytree(made, tmp_path / "b")), count_pip(monkeypatch), list[str]()
    try:
        rows.write_bytes(before + before.splitlines(keepends=True)[0].replace(b"0 + 0", b"5 + 5"))
        make_bundle(order, folder, said.append)
        assert (folder / "data/rows.jsonl").read_bytes() == rows.read_bytes()
    finally:
        rows.write_bytes(before)
    assert find_faults(folder) == []
    assert said[0] == "the model or the data have changed since the bundle was made"
    assert calls == []


def test_an_interrupted_bundle_goes_on(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, place = made.parent / "interrupted", made.parent

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("sdzero.onprem.licences.write_licences", killed)
        with pytest.raises(Killed):
            make_bundle(order_of(place), folder, lambda text: None)
    assert not folder.exists()
    partial = place / "interrupted.partial"
    assert len(list(partial.glob("wheels/*.whl"))) == 4
    (partial / "models/my-model/.config.json.copying").write_text("torn")
    calls = count_pip(monkeypatch)
    make_bundle(order_of(place), folder, lambda text: None)
    assert calls == []  # versions and wheels are there
    assert find_faults(folder) == []
    assert not (folder / "models/my-model/.config.json.copying").exists()


def test_the_beginnings_of_another_bundle_are_left_alone(made: Path, tmp_path: Path) -> None:
    (tmp_path / "b.partial/.making").mkdir(parents=True)
    (tmp_path / "b.partial/.making/plan.json").write_text('{"other": 1}')
    with pytest.raises(UserError, match="beginnings of a bundle of something else"):
        make_bundle(order_of(made.parent), tmp_path / "b", lambda text: None)


def test_a_bundle_of_something_else_is_left_alone(made: Path) -> None:
    order = order_of(made.parent)
    other = Order(order.recipe.model_copy(update={"seed": 99}), order.target, order.source, None)
    with pytest.raises(UserError, match="a bundle of something else here already"):
        make_bundle(other, made, lambda text: None)


def test_a_folder_with_other_things_is_left_alone(made: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="something else here already"):
        make_bundle(order_of(made.parent), tmp_path / "mine", lambda text: None)
    assert (tmp_path / "mine/thesis.txt").exists()


@pytest.mark.slow
def test_a_source_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither sdzero's wheel nor its source tree"):
        make_bundle(order_of(tmp_path, source=tmp_path / "none"), tmp_path / "out", print)
    assert not (tmp_path / "out.partial").exists()


def test_wheels_that_do_not_fit_together_are_told(made: Path, tmp_path: Path) -> None:
    """pip takes one that the machine has for enough; what the wheels ask for is looked at again."""
    own = fake_sdzero(tmp_path, needs=("toy>=1", "elsewhere>=3; platform_machine == 'aarch64'"))
    order = Order(order_of(made.parent).recipe, Target("aarch64", (2, 28), (3, 11)), own, None)
    for native in (made.parent / "house").glob("native-*manylinux_2_17*"):
        shutil.copy(native, native.with_name(native.name.replace("x86_64", "aarch64")))
    with pytest.raises(UserError, match="sdzero needs elsewhere>=3, and there is none"):
        make_bundle(order, tmp_path / "b", lambda text: None)


@pytest.mark.slow
def test_a_platform_without_a_wheel_is_told_in_pips_words(made: Path, tmp_path: Path) -> None:
    order = order_of(made.parent)
    old = Order(order.recipe, Target.parse("manylinux_2_5_x86_64", "3.11"), order.source, None)
    with pytest.raises(UserError, match="no wheel for manylinux_2_5_x86_64") as refused:
        make_bundle(old, tmp_path / "b", lambda text: None)
    assert "native" in str(refused.value)


# ---- the installer ----


def install(bundle: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).resolve().parent}:{os.environ['PATH']}"
    kept = {"PATH": path, "HOME": str(bundle.parent / "home"), "FAKE_LOG": str(bundle.parent / "log")}
    return subprocess.run(
        ["sh", str(bundle / "install.sh"), *options],
        capture_output=True,
        text=True,
        timeout=180,
        env=kept | variables,
        cwd=bundle.parent,
    )


def test_the_installer_needs_nothing_but_the_folder(copied: Path) -> None:
    done = install(copied, PIP_INDEX_URL="http://192.0.2.7/simple", PIP_FIND_LINKS="/nowhere")
    assert done.returncode == 0, done.stdout + done.stderr
    log = (copied.parent / "log").read_text().splitlines()
    assert log[0] == f"{copied} doctor recipe.yaml"
    assert log[1].startswith(f"{copied} run smoke.yaml --output ")
    command = copied / "venv/bin/sdzero"
    assert f"  {command}\n" in done.stdout
    assert command.is_file()
    assert find_faults(copied) == []  # the environment is no part of the bundle
    listed = subprocess.run(
        [copied / "venv/bin/python", "-I", "-m", "pip", "list", "--format", "json"],
        capture_output=True,
        text=True,
    )
    found = {row["name"]: row["version"] for row in json.loads(listed.stdout)}
    assert {"sdzero", "toy", "native", "pip"} == set(found)


@pytest.mark.slow
def test_a_check_that_fails_is_told_and_the_command_is_named(copied: Path) -> None:
    done = install(copied, "--to", "elsewhere", FAKE_FAILS="doctor")
    assert done.returncode == 1
    assert "a check of sdzero doctor did not hold" in done.stderr
    assert f"{copied.parent}/elsewhere/bin/sdzero" in done.stderr


def rewritten(bundle: Path, old: str, new: str) -> None:
    """Change the installer, and the list of sums with it, as a bundle for something else would have them."""
    script = bundle / "install.sh"
    before = sum_of(script)
    assert old in script.read_text()
    script.write_text(script.read_text().replace(old, new))
    sums = bundle / "SHA256SUMS"
    sums.write_text(sums.read_text().replace(before, sum_of(script)))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('= "x86_64" ]', '= "riscv64" ]', "the bundle is for x86_64, and this is"),
        ("= Linux ]", "= Plan9 ]", "the bundle is for Linux"),
        ('-lt "2" ]', '-lt "3" ]', "the bundle needs glibc 2.28 or newer"),
        ("cpython 3.11", "cpython 3.99", "no Python 3.11 here"),
    ],
)
def test_a_wrong_machine_or_python_is_refused(copied: Path, old: str, new: str, told: str) -> None:
    rewritten(copied, old, new)
    done = install(copied)
    assert done.returncode == 1
    assert told in done.stderr
    assert "to do:" in done.stderr
    assert not (copied / "venv").exists()


def test_another_python_that_is_named_is_refused(copied: Path, tmp_path: Path) -> None:
    old = tmp_path / "python2"
    old.write_text("#!/bin/sh\necho cpython 2.7\n")
    old.chmod(0o755)
    done = install(copied, "--python", str(old))
    assert done.returncode == 1
    assert "is: cpython 2.7" in done.stderr


def test_a_changed_byte_is_refused_before_anything_else(copied: Path) -> None:
    rewritten(copied, "= Linux ]", "= Plan9 ]")
    recipe = copied / "recipe.yaml"
    recipe.write_bytes(recipe.read_bytes().replace(b"seed: 3", b"seed: 4"))
    done = install(copied)
    assert done.returncode == 1
    assert "recipe.yaml: FAILED" in done.stderr
    assert "Plan9" not in done.stderr


def test_a_missing_and_an_extra_file_are_refused(copied: Path) -> None:
    (copied / "models/my-model/config.json").rename(copied / "wheels/evil-9.0-py3-none-any.whl")
    done = install(copied)
    assert done.returncode == 1
    assert "models/my-model/config.json" in done.stderr
    (copied / "wheels/evil-9.0-py3-none-any.whl").rename(copied / "models/my-model/config.json")
    (copied / "wheels/evil-9.0-py3-none-any.whl").write_text("")
    done = install(copied)
    assert done.returncode == 1
    assert "wheels/evil-9.0-py3-none-any.whl" in done.stderr
    assert "no part of the bundle" in done.stderr


def test_a_folder_with_other_things_is_not_made_an_environment(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("years of work")
    done = install(copied, "--to", str(tmp_path / "home"))
    assert done.returncode == 1
    assert "there is something else in" in done.stderr
    assert (tmp_path / "home/thesis.txt").exists()


def test_the_short_run_is_the_demo_with_few_questions() -> None:
    demo = yaml.safe_load((ROOT / "recipes/demo.yaml").read_text())
    smoke = yaml.safe_load((ROOT / "src/sdzero/onprem/airgap/smoke.yaml").read_text())
    load_recipe(ROOT / "src/sdzero/onprem/airgap/smoke.yaml")
    assert smoke.pop("name") == "smoke"
    counts = {key: smoke["data"].pop(key) for key in ("n1", "n2", "tuning", "test")}
    assert max(counts.values()) <= 64
    for section, values in smoke.items():
        expected = demo[section]
        if section == "data":
            expected = {"source": expected["source"]}
        assert values == expected, section
