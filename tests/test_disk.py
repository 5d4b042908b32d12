"""A full disk and a folder without the right to write: told with the path, and the run goes on later."""

import hashlib
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ordinary_user import run_as_ordinary_user
from sdzero.disk import writing
from sdzero.errors import UserError
from sdzero.models import save_model
from sdzero.recipe_io import load_recipe
from support import environment, micro_recipe
from test_damage import assert_equal, make_bench, weights_after


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to make a file longer, as it does on a full disk, but with another reason."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("refused", ["model.safetensors", "optimizer.pt"])
def test_a_checkpoint_that_cannot_be_written_ends_the_run_which_goes_on_later(
    tmp_path: Path, refused: str
) -> None:
    run = tmp_path / "run"
    bench = make_bench(run)
    weights = sum(p.numel() * p.element_size() for p in bench.model.parameters())
    size = weights // 2 if refused == "model.safetensors" else weights + weights // 2
    with files_of_at_most(size), pytest.raises(UserError, match="cannot be written") as error:
        bench.train()
    bench.run.close()
    assert "distill/checkpoints/checkpoint-2" in str(error.value.where)
    assert "free space" in str(error.value.todo)
    assert len(list(run.glob("distill/rollouts/*.jsonl"))) == 2
    assert_equal(weights_after(make_bench(run)), weights_after(make_bench(tmp_path / "alone")))


def test_a_model_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "run")
    folder = tmp_path / "model"
    save_model(bench.model, bench.tokenizer, folder)
    before = (folder / "model.safetensors").read_bytes()
    with files_of_at_most(100_000), pytest.raises(UserError, match="cannot be written") as error:
        save_model(bench.model, bench.tokenizer, folder)
    assert str(tmp_path / "model") in str(error.value.where)
    assert (folder / "model.safetensors").read_bytes() == before
    save_model(bench.model, bench.tokenizer, folder)


def test_a_fault_that_is_not_the_disks_is_not_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), writing(tmp_path):
        raise RuntimeError("shapes do not fit")


READ_ONLY = """
import os, tempfile
from pathlib import Path
from sdzero.errors import UserError
from sdzero.recipe import Recipe
from sdzero.run_dir import RunDir

root = Path(tempfile.mkdtemp())
recipe = Recipe.model_validate_json({recipe!r})
run = RunDir.open(root / "run", recipe)
run.write_json("kept.json", [1])
(root / "run/sealed").mkdir()
os.chmod(root / "run/sealed", 0o500)
for write in (run.write_json, lambda name, data: run.append_jsonl(name, {{"a": data}})):
    try:
        write("sealed/new.json", 1)
    except UserError as error:
        print(str(error).replace(str(root), "ROOT"))
run.close()
os.chmod(root, 0o500)
try:
    RunDir.open(root / "other", recipe)
except UserError as error:
    print(str(error).replace(str(root), "ROOT"))
print(RunDir.unlocked(root / "run").read_json("kept.json"))
"""


def test_a_folder_that_cannot_be_written_is_told_with_its_path(tmp_path: Path) -> None:
    recipe = load_recipe(micro_recipe(tmp_path)).model_dump_json()
    out = run_as_ordinary_user(READ_ONLY.format(recipe=recipe))
    assert out.count("(Permission denied)") == 3, out
    assert out.count("where: ROOT/run/sealed/new.json") == 2, out
    assert out.count("check the disk's free space and the permissions") == 2, out
    assert "where: ROOT/other" in out
    assert out.splitlines()[-1] == "[1]"


FULL = """
set -e
mount -t tmpfs -o size={first}k none "$1"
set +e
for size in {sizes}; do
    mount -o remount,size=${{size}}k "$1"
    "{python}" -m sdzero.cli run "$2" -o "$1/run" > /dev/null 2> "$3/errors-$size"
    echo "$size $?"
    find "$1/run" -name 'batch-*.jsonl' -o -name 'step-*.jsonl' | xargs -r sha256sum > "$3/batches-$size"
done
cp -r "$1/run/srt/round-1/model" "$3/srt"
cp -r "$1/run/distill/model" "$3/distill"
"""


@pytest.mark.slow
def test_a_disk_that_is_full_again_and_again_costs_nothing(micro_run: Path, tmp_path: Path) -> None:
    """A small file system of its own, with a little more room after each failure."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    sizes = [16, 64, 600, 2_000, 5_000, 9_000, 200_000]
    script = FULL.format(first=sizes[0], sizes=" ".join(map(str, sizes)), python=sys.executable)
    done = subprocess.run(
        [unshare, "-Urm", "sh", "-c", script, "sh", disk, micro_recipe(tmp_path), kept],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
    )
    statuses = dict(map(int, line.split()) for line in done.stdout.splitlines())  # type: ignore[misc]
    assert statuses[200_000] == 0, (done.stdout, done.stderr, (kept / "errors-200000").read_text())
    failed = [size for size in sizes if statuses[size]]
    assert len(failed) >= 4, done.stdout
    before: set[str] = set()
    for size in sizes:
        batches = set((kept / f"batches-{size}").read_text().splitlines())
        assert before <= batches, f"a finished batch was lost or changed with {size} KiB"
        before = batches
    for size in failed:
        errors = (kept / f"errors-{size}").read_text()
        assert "No space left on device" in errors, errors
        assert f"where: {disk}/run" in errors, errors
        assert "Traceback" not in errors
    for stage, name in (("srt/round-1", "srt"), ("distill", "distill")):
        own = [folder / "model.safetensors" for folder in (kept / name, micro_run / stage / "model")]
        sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in own]
        assert sums[0] == sums[1]
