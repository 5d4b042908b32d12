"""A run's folder: whole files or none, one process at a time, resuming only what is the same run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sdzero.errors import UserError
from sdzero.recipe import Recipe
from sdzero.recipe_io import load_recipe, recipe_sha256
from sdzero.run_dir import TEMPORARY_SUFFIX, RunDir


def make_recipe(**changes: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "small",
            "data": {"n1": 1, "n2": 1, "test": 1},
            "collect": {"max_new_tokens": 1},
            "srt": {"learning_rate": 0.1},
            "distill": {"learning_rate": 0.1, "max_new_tokens": 1},
            "rft": {"learning_rate": 0.1},
            "evaluate": {"max_new_tokens": 1},
            **changes,
        }
    )


def test_a_new_run_says_what_it_is(tmp_path: Path) -> None:
    recipe = make_recipe(seed=7)
    with RunDir.open(tmp_path / "runs" / "a", recipe) as run:
        manifest = run.manifest()
        assert manifest["schema"] == 1
        assert manifest["recipe_sha256"] == recipe_sha256(recipe)
        assert manifest["seed"] == 7
        assert manifest["versions"]["python"] == sys.version.split()[0]
        assert manifest["versions"]["torch"]
        assert load_recipe(run.path("recipe.yaml")) == recipe


def test_resuming_keeps_what_is_there(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, make_recipe()) as run:
        created = run.manifest()["created"]
        run.write_jsonl("collect/a.jsonl", [{"text": "line\u2028separator"}, [1, None]])
        assert not run.is_done("collect/round-1")
        run.mark_done("collect/round-1", {"kept": 3})
        leftover = run.path("collect", f".a.jsonl.1-2{TEMPORARY_SUFFIX}")
        leftover.write_text("half")
    with RunDir.open(tmp_path, make_recipe()) as run:
        assert run.manifest()["created"] == created
        assert run.read_jsonl("collect/a.jsonl") == [{"text": "line\u2028separator"}, [1, None]]
        assert run.is_done("collect/round-1")
        assert run.stage_info("collect/round-1") == {"kept": 3}
        assert not leftover.exists()


def test_another_recipe_is_refused_with_the_differences(tmp_path: Path) -> None:
    RunDir.open(tmp_path, make_recipe()).close()
    with pytest.raises(UserError, match="different recipe") as caught:
        RunDir.open(tmp_path, make_recipe(seed=1, srt={"learning_rate": 0.2}))
    assert "seed: 0 -> 1" in str(caught.value)
    assert "srt.learning_rate: 0.1 -> 0.2" in str(caught.value)
    RunDir.open(tmp_path, make_recipe()).close()  # the refusal has given the folder up


def test_a_run_killed_while_starting_can_be_opened(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("1")
    (tmp_path / f".manifest.json.1-0{TEMPORARY_SUFFIX}").write_text("{")
    with RunDir.open(tmp_path, make_recipe()) as run:
        run.path("recipe.yaml").unlink()
    with RunDir.open(tmp_path, make_recipe()) as run:
        assert run.path("recipe.yaml").exists()


def test_foreign_folders_and_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not a run \(it holds thesis.txt\)"):
        RunDir.open(tmp_path, make_recipe())
    assert os.listdir(tmp_path) == ["thesis.txt"]
    with pytest.raises(UserError, match="cannot be written"):
        RunDir.open(tmp_path / "thesis.txt", make_recipe())
    with pytest.raises(UserError, match="cannot be written"):
        RunDir.open("/proc/sdzero/run", make_recipe())


def test_a_damaged_or_newer_manifest_is_named(tmp_path: Path) -> None:
    RunDir.open(tmp_path, make_recipe()).close()
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema": 2}))
    with pytest.raises(UserError, match="schema 2"):
        RunDir.open(tmp_path, make_recipe())
    manifest.write_text("[]")
    with pytest.raises(UserError, match="no JSON object"):
        RunDir.open(tmp_path, make_recipe())
    manifest.write_text('{"schema":')
    with pytest.raises(UserError, match=r"manifest\.json: line 1"):
        RunDir.open(tmp_path, make_recipe())


HOLDER = """
import os, sys, time
from sdzero.recipe_io import load_recipe
from sdzero.run_dir import RunDir
run = RunDir.open(sys.argv[1], load_recipe(sys.argv[1] + "/recipe.yaml"))
if os.fork() == 0:
    print("held", flush=True)  # by the child: it has let go of the lock by now
    os.close(1)
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""


def test_one_process_at_a_time_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    RunDir.open(tmp_path, make_recipe()).close()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"another process \(id {holder.pid}\)"):
            RunDir.open(tmp_path, make_recipe())
        holder.kill()  # its forked child lives on, as a verifier's worker may
        holder.wait()
        RunDir.open(tmp_path, make_recipe()).close()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()


def test_a_second_open_in_the_same_process_is_refused(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, make_recipe()) as run:
        with pytest.raises(UserError, match="another process"):
            RunDir.open(tmp_path, make_recipe())
        run.close()
        RunDir.open(tmp_path, make_recipe()).close()


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, make_recipe()) as run:
        run.write_json("a.json", {"x": 1})

        def rows() -> object:
            yield {"x": 2}
            raise RuntimeError("killed here")

        with pytest.raises(RuntimeError):
            run.write_jsonl("a.json", rows())
        with pytest.raises(ValueError, match="JSON"):
            run.write_json("a.json", {"x": float("nan")})
        with pytest.raises(UserError, match="cannot be written"):
            run.write_text("a.json/b", "no folder here")
        assert run.read_json("a.json") == {"x": 1}
        assert not list(tmp_path.rglob(f"*{TEMPORARY_SUFFIX}"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"a": 1}\n{"a": ', "line 2"),
        (b'{"a": 1}\n{"a" 1}\n', "line 2"),
        (b"\xff\n", "UTF-8"),
        (None, "missing"),
    ],
)
def test_damaged_rows_are_named(tmp_path: Path, content: bytes | None, problem: str) -> None:
    with RunDir.open(tmp_path, make_recipe()) as run:
        if content is not None:
            run.path("rows.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=problem) as caught:
            run.read_jsonl("rows.jsonl")
        assert str(tmp_path / "rows.jsonl") in str(caught.value)


def test_stage_names_stay_inside_the_folder(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, make_recipe()) as run:
        for name in ("../x", "", "a//b", "/etc/x", "a/../b"):
            with pytest.raises(ValueError, match="stage name"):
                run.mark_done(name)


def test_a_log_survives_a_torn_line_and_nan(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, make_recipe()) as run:
        run.append_jsonl("srt/log.jsonl", {"step": 1, "loss": 0.5})
        with run.path("srt/log.jsonl").open("ab") as file:
            file.write(b'{"step": 2, "lo')
        run.append_jsonl("srt/log.jsonl", {"step": 2, "loss": float("nan")})
        assert run.read_jsonl("srt/log.jsonl") == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": "nan"}]
        run.path("srt/torn.jsonl").write_bytes(b"torn")
        run.append_jsonl("srt/torn.jsonl", {"a": 1})
        assert run.read_jsonl("srt/torn.jsonl") == [{"a": 1}]


def test_folders_are_removed_by_pattern(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, make_recipe()) as run:
        run.write_text("srt/checkpoints-0/a", "x")
        run.write_text("srt/model/a", "x")
        run.write_text("srt/checkpoints.txt", "x")
        run.remove_folders("srt", "checkpoints*")
        assert sorted(os.listdir(run.path("srt"))) == ["checkpoints.txt", "model"]
