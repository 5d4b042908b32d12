"""The whole way for real: bundle the demo recipe, copy it, install it and run it where there is no network.

The first step needs what pip is set up to reach, so this is no part of `make test` or `make slow`.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdzero.onprem.bundle_check import find_faults, read_facts
from support import sdzero

pytestmark = pytest.mark.airgap

ROOT = Path(__file__).parents[2]
SHORT = ("data.n1=24", "data.n2=64", "data.tuning=0", "data.test=16")
APART = (
    ("unshare", "--map-root-user", "--net", "--"),
    ("bwrap", "--dev-bind", "/", "/", "--unshare-net", "--die-with-parent", "--"),
)
"""Ways to a namespace with no interface but a loopback; in the first that is down too."""

MINUTES = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("airgap")
    yield folder
    shutil.rmtree(folder)  # some GB


@pytest.fixture(scope="module")
def brought(place: Path) -> Path:
    """The bundle on the other side: brought there in parts, which were put together with the usual tools."""
    made, other = place / "connected/demo", place / "the other side"
    words = ("bundle", ROOT / "recipes/demo.yaml", *SHORT, "-o", made, "--split", "150M")
    done = sdzero(*words, timeout=45 * MINUTES)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copytree(made.with_name("demo.parts"), other)
    shutil.rmtree(place / "connected")
    assert len(list(other.glob("demo.tar.*"))) > 1
    joined = apart(
        "sh", "-c", "sha256sum -c SHA256SUMS && cat demo.tar.* | tar -xf -", cwd=other, home=place / "home"
    )
    assert joined.returncode == 0, joined.stderr
    return other / "demo"


def apart(*command: str | Path, cwd: Path, home: Path, minutes: int = 20) -> subprocess.CompletedProcess[str]:
    """Run a command without a network, with another home and an environment of its own."""
    prefix = next(
        way for way in APART if shutil.which(way[0]) and not subprocess.run([*way, "true"]).returncode
    )
    home.mkdir(exist_ok=True)
    variables = {
        "PATH": f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin",
        "HOME": str(home),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    }
    return subprocess.run(
        [*prefix, *map(str, command)],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        timeout=minutes * MINUTES,
    )


def test_the_bundle_is_installed_and_the_recipe_run_without_a_network(brought: Path, place: Path) -> None:
    home = place / "home"
    seen = apart("cat", "/proc/net/dev", cwd=brought, home=home)
    assert [line.partition(":")[0].strip() for line in seen.stdout.splitlines()[2:]] == ["lo"]

    done = apart("sh", "install.sh", cwd=brought, home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything held" in done.stdout
    command = brought / "venv/bin/sdzero"
    assert str(command) in done.stdout

    done = apart(command, "run", "recipe.yaml", "-o", "runs/demo", cwd=brought, home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((brought / "runs/demo/results.json").read_text())
    assert set(results["evaluations"]) == {"base", "rft", "srt", "sdzero"}

    done = apart(command, "bundle", "verify", ".", "--json", cwd=brought, home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["whole"] is True


def test_the_parts_of_the_bundle_are_all_listed(brought: Path) -> None:
    wheels = {file.name.partition("-")[0].lower().replace("_", "-") for file in brought.glob("wheels/*.whl")}
    assert {"sdzero", "torch", "transformers", "trl", "pip"} <= wheels
    listed = json.loads((brought / "sbom.cdx.json").read_text())
    names = {one["name"] for one in listed["components"]} | {listed["metadata"]["component"]["name"]}
    assert {name.replace(".", "-") for name in names} == {name.replace(".", "-") for name in wheels}
    table = (brought / "licences/README.md").read_text()
    assert all(f"| {name} |" in table for name in names)
    assert read_facts(brought)["target"]["machine"] == "x86_64"


def test_a_changed_byte_is_refused(brought: Path, place: Path) -> None:
    recipe = brought / "recipe.yaml"
    before = recipe.read_bytes()
    recipe.write_bytes(before.replace(b"seed: 0", b"seed: 1"))
    done = apart("sh", "install.sh", "--to", place / "never", cwd=brought, home=place / "home")
    recipe.write_bytes(before)
    assert done.returncode == 1
    assert "recipe.yaml: FAILED" in done.stderr
    assert not (place / "never").exists()
    assert find_faults(brought) == []
