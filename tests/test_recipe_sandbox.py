"""Settings of code questions: the sandbox, its verifier, its data; and the pool that comes of them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import sdzero.verify.pool as pool_module
from sdzero.errors import UserError
from sdzero.recipe import BUILT_IN, CODE_SOURCES, DataSettings, VerifierSettings
from sdzero.recipe_io import dump_recipe, load_recipe
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify.backends import limits_of
from sdzero.verify.pool import pool_of
from support import environment, micro_recipe

CODE: dict[str, Any] = {"name": "code", "timeout_seconds": 60.0}
SIZES: dict[str, Any] = {"n1": 1, "n2": 1, "test": 1}


def faults_of(kind: type, **keys: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        kind(**keys)
    return str(caught.value)


# ---- the sandbox ----


def test_without_settings_programs_run_in_isolation() -> None:
    settings = SandboxSettings()
    assert settings.backend == "bubblewrap"
    assert settings.cache
    limits = limits_of(settings)
    assert all(value > 0 for value in vars(limits).values())
    assert limits.memory_megabytes <= 1024


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"backend": "docker"}, "backend `docker` needs `image`"),
        ({"backend": "podman", "image": ""}, "backend `podman` needs `image`"),
        ({"image": "python:3"}, "`image` goes with docker and podman, not with `bubblewrap`"),
        ({"backend": "unsafe", "image": "python:3"}, "not with `unsafe`"),
        ({"backend": "docker", "image": "x", "python": "/usr/bin/python3"}, "are the image's own"),
        ({"backend": "podman", "image": "x", "packages": "folder"}, "are the image's own"),
        ({"backend": "none"}, "backend"),
        ({"memory": 100}, "memory"),
        ({"wall_seconds": 0}, "wall_seconds"),
        ({"wall_seconds": float("inf")}, "wall_seconds"),
        ({"cpu_seconds": -1}, "cpu_seconds"),
        ({"time_factor": 0}, "time_factor"),
        ({"memory_megabytes": 31}, "memory_megabytes"),
        ({"processes": 0}, "processes"),
        ({"open_files": 15}, "open_files"),
        ({"file_megabytes": 0}, "file_megabytes"),
        ({"disk_megabytes": 0}, "disk_megabytes"),
        ({"output_megabytes": 0}, "output_megabytes"),
        ({"compile_seconds": 0}, "compile_seconds"),
        ({"compile_memory_megabytes": 255}, "compile_memory_megabytes"),
    ],
)
def test_sandboxes_that_cannot_be(keys: dict[str, Any], message: str) -> None:
    assert message in faults_of(SandboxSettings, **keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"backend": "docker", "image": "python:3"},
        {"backend": "podman", "image": "python:3"},
        {"backend": "unsafe", "python": "/usr/bin/python3"},
        {"python": "/usr/bin/python3", "packages": "folder", "compiler_options": []},
        {"memory_megabytes": 32, "processes": 1, "open_files": 16, "cache": False},
    ],
)
def test_sandboxes_that_can_be_reach_a_worker_as_json(keys: dict[str, Any]) -> None:
    settings = SandboxSettings(**keys)
    again = SandboxSettings(**json.loads(json.dumps(settings.model_dump(mode="json"))))
    assert again == settings
    assert {key: getattr(again, key) for key in keys} == keys


_positive = st.floats(0.1, 1000)


@given(wall=_positive, cpu=_positive, sizes=st.lists(st.integers(32, 4096), min_size=6, max_size=6))
def test_limits_are_those_of_the_settings(wall: float, cpu: float, sizes: list[int]) -> None:
    names = (
        "memory_megabytes",
        "processes",
        "open_files",
        "file_megabytes",
        "disk_megabytes",
        "output_megabytes",
    )
    given_ = {"wall_seconds": wall, "cpu_seconds": cpu, **dict(zip(names, sizes, strict=True))}
    assert vars(limits_of(SandboxSettings(**given_))) == given_


# ---- the verifier ----


def test_the_time_of_a_response_is_above_that_of_one_test() -> None:
    for seconds in (5.0, 10.0):
        message = faults_of(VerifierSettings, name="code", timeout_seconds=seconds)
        assert f"timeout_seconds ({seconds:g}) is for all tests of a response" in message
        assert "sandbox.wall_seconds (10)" in message
    assert VerifierSettings(name="code", timeout_seconds=10.5).timeout_seconds == 10.5
    short = VerifierSettings(name="code", sandbox={"wall_seconds": 4})
    assert short.timeout_seconds == 5.0
    assert VerifierSettings(name="math", timeout_seconds=1.0).timeout_seconds == 1.0


@pytest.mark.parametrize("name", ["math", "puzzle", "my_module:Own"])
def test_a_sandbox_goes_with_code(name: str) -> None:
    message = faults_of(VerifierSettings, name=name, sandbox={"processes": 8})
    assert "`sandbox` goes with the verifier `code`" in message
    assert VerifierSettings(name=name, sandbox={}).name == name
    assert VerifierSettings(**CODE, sandbox={"processes": 8}).sandbox.processes == 8


@pytest.mark.parametrize("workers", [0, -2, "many", 1.5, None])
def test_workers_that_cannot_be(workers: Any) -> None:
    assert "workers" in faults_of(VerifierSettings, workers=workers)


# ---- the data ----


@pytest.mark.parametrize("source", CODE_SOURCES)
def test_code_sources_are_read_from_somewhere(source: str) -> None:
    if source == "humaneval":  # there is a package with it
        assert DataSettings(source=source, **SIZES).path is None
    else:
        assert f"source `{source}` needs `path`" in faults_of(DataSettings, source=source, **SIZES)
    settings = DataSettings(source=source, path="folder", subset="part", max_tests=5, **SIZES)
    assert (settings.path, settings.subset, settings.max_tests) == ("folder", "part", 5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"source": "mbpp", "path": "x", "languages": ["cpp"]}, "source `mbpp` asks for Python only"),
        (
            {"source": "arithmetic", "languages": ["python", "cpp"]},
            "source `arithmetic` asks for Python only",
        ),
        ({"source": "codeforces", "path": "x", "languages": []}, "languages"),
        ({"source": "codeforces", "path": "x", "languages": ["rust"]}, "languages"),
        (
            {"source": "edits", "max_tests": 3},
            "`max_tests` goes with a code data set: codeforces, livecodebench",
        ),
        ({"source": "jsonl", "path": "x", "max_tests": 3}, "`max_tests` goes with a code data set"),
        ({"source": "mbpp", "path": "x", "max_tests": 0}, "max_tests"),
        ({"source": "edits", "path": "x"}, "source `edits` makes its questions and reads no `path`"),
        ({"source": "edits", "subset": "x"}, "`subset` goes with source `huggingface` or a code data set"),
        ({"source": "jsonl", "path": "x", "subset": "y"}, "`subset` goes with source `huggingface`"),
        ({"source": "mbpp", "path": "x", "tasks": ["chain_sum"]}, "go with source `reasoning_gym`"),
    ],
)
def test_data_that_cannot_be(keys: dict[str, Any], message: str) -> None:
    assert message in faults_of(DataSettings, **SIZES, **keys)


def test_codeforces_asks_for_either_language_or_both() -> None:
    for languages in (["cpp"], ["python", "cpp"], ["python"]):
        settings = DataSettings(source="codeforces", path="x", languages=languages, **SIZES)
        assert settings.languages == languages


def test_the_sources_are_those_that_are_named_elsewhere() -> None:
    choices = get_args(DataSettings.model_fields["source"].annotation)
    assert sorted(choices) == sorted([*BUILT_IN, *CODE_SOURCES, "jsonl", "huggingface", "reasoning_gym"])


# ---- in a recipe ----


def code_recipe(folder: Path, **sandbox: Any) -> Path:
    return micro_recipe(folder, {"verifier": {**CODE, "workers": "auto", "sandbox": sandbox}})


def test_a_recipe_of_code_comes_back(tmp_path: Path) -> None:
    recipe = load_recipe(code_recipe(tmp_path, memory_megabytes=512, compiler="clang++"))
    assert recipe.verifier.workers == "auto"
    assert recipe.verifier.sandbox == SandboxSettings(memory_megabytes=512, compiler="clang++")
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("verifier.workers=0", ["workers must be 1 or more, or `auto`"]),
        ("verifier.workers=many", ["'many'", "verifier.workers", "auto"]),
        ("verifier.workers=true", ["verifier.workers"]),
        ("verifier.timeout_seconds=3", ["timeout_seconds (3)", "verifier"]),
        ("verifier.name=math", ["`sandbox` goes with the verifier `code`", "verifier"]),
        ("verifier.sandbox.backend=jail", ["'jail' is not a choice", "'podman'"]),
        ("verifier.sandbox.backend=docker", ["backend `docker` needs `image`", "verifier.sandbox"]),
        ("verifier.sandbox.memory_megabyte=64", ["unknown key", "memory_megabytes`"]),
        ("data.max_tests=4", ["`max_tests` goes with a code data set", "data"]),
    ],
)
def test_faults_in_a_recipe_name_their_key(tmp_path: Path, override: str, parts: list[str]) -> None:
    recipe = code_recipe(tmp_path, processes=8)
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, [override])
    assert [part for part in parts if part not in str(caught.value)] == []


def test_it_imports_no_torch() -> None:
    code = "import sys, sdzero.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == 0


# ---- the pool ----


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """With which arguments pools are made; none is."""
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr(pool_module, "VerifierPool", lambda *arguments: made.append(arguments))
    return made


def test_auto_is_a_worker_for_each_core_of_this_process(
    asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A container or `taskset` may allow fewer cores than the machine has.
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 4, 6}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    pool_of(VerifierSettings(workers="auto"))
    pool_of(VerifierSettings(workers=5))
    assert [arguments[1] for arguments in asked] == [3, 5]


def test_only_code_gets_a_sandbox_and_a_cache(asked: list[tuple[Any, ...]], tmp_path: Path) -> None:
    pool_of(VerifierSettings(name="puzzle", workers=1, timeout_seconds=7.0), tmp_path / "cache")
    assert asked.pop() == ("puzzle", 1, 7.0, {})
    settings = VerifierSettings(**CODE, workers=2, sandbox={"processes": 8})
    pool_of(settings, tmp_path / "cache")
    name, workers, seconds, options = asked.pop()
    assert (name, workers, seconds) == ("code", 2, 60.0)
    assert options["cache"] == str(tmp_path / "cache")
    assert SandboxSettings(**json.loads(json.dumps(options))["sandbox"]) == settings.sandbox
    pool_of(settings)
    assert "cache" not in asked.pop()[3]
