"""The benchmark of sampling times what it says: both sides sample whole responses of the same load."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def rollout_speed() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "rollout_speed.py"
    spec = importlib.util.spec_from_file_location("rollout_speed", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rollout_speed"] = module
    spec.loader.exec_module(module)
    return module


def small(shape, **changes):
    sizes = {"vocabulary": 60, "hidden": 16, "intermediate": 24, "layers": 2, "heads": 2, "requests": 6}
    return dataclasses.replace(shape, **sizes, batch_size=4, **changes)


def test_responses_run_to_the_full_length_where_they_should(rollout_speed: ModuleType) -> None:
    shape = small(rollout_speed.SHAPES[2], new_tokens=9)
    model, requests = rollout_speed.make_model(shape), rollout_speed.make_requests(shape)
    assert rollout_speed.with_engine(model, requests, shape) == 6 * 9
    assert rollout_speed.with_generate(model, requests, shape) == 6 * 9


def test_mixed_lengths_have_the_mean_that_was_asked_for(rollout_speed: ModuleType) -> None:
    shape = dataclasses.replace(small(rollout_speed.SHAPES[0]), requests=300, batch_size=150)
    shape = dataclasses.replace(shape, new_tokens=40, mean_new_tokens=10)
    model, requests = rollout_speed.make_model(shape), rollout_speed.make_requests(shape)
    for sample in (rollout_speed.with_engine, rollout_speed.with_generate):
        # The standard error of the mean is about 0.55 tokens.
        assert abs(sample(model, requests, shape) / 300 - 10) < 2.5


def test_entries_have_the_form_that_the_check_reads(
    rollout_speed: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = [small(shape, new_tokens=4, mean_new_tokens=None) for shape in rollout_speed.SHAPES]
    monkeypatch.setattr(rollout_speed, "SHAPES", shapes)
    found = rollout_speed.entries(runs=1)
    assert [entry["name"].split(", ")[-1] for entry in found] == ["tiny", "24M", "70M"]
    assert [entry["target"] for entry in found] == [3.0, 3.0, 2.0]
    for entry in found:
        assert entry["better"] == "higher"
        assert entry["runs"] == 1
        assert entry["ratio"] > 0
        assert entry["machine"]
