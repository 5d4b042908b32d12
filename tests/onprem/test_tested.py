"""Versions against those that the tests were run with, and PyTorch's build against the GPU."""

import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdzero.onprem import gpu as gpu_checks
from sdzero.onprem.findings import Subject
from sdzero.onprem.gpu import gpu, runs_on
from sdzero.onprem.tested import OLDEST, TESTED, judge, numbers_of
from sdzero.recipe import Recipe

ROOT = Path(__file__).parents[2]


def test_the_versions_are_those_of_the_constraints_and_the_lower_bounds() -> None:
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert {name: pinned[name] for name in TESTED} == TESTED
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = dict(re.split(">=", one, maxsplit=1) for one in project["dependencies"] if ">=" in one)
    assert {name: bounds[name] for name in OLDEST} == OLDEST


@pytest.mark.parametrize(
    ("version", "held", "is_warning"),
    [
        ("2.13.0", True, False),
        ("2.13.0+cu130", True, False),
        ("2.14.1", True, True),
        ("2.12.9", False, False),
    ],
)
def test_another_version_is_a_warning_and_one_that_is_too_old_a_failure(
    version: str, held: bool, is_warning: bool
) -> None:
    found = judge("torch", version)
    assert (found.held, found.is_warning) == (held, is_warning)
    assert version in found.detail
    assert ("pip install 'torch==2.13.0'" in found.todo) == (not held or is_warning)


def test_packages_without_a_tested_version_are_named() -> None:
    assert judge("python", "3.14.0").held
    assert numbers_of("5.19.0.dev0") == (5, 19, 0)


class FakeCuda:
    """A machine with one GPU, as PyTorch shows it."""

    def __init__(self, capability: tuple[int, int], architectures: list[str], available: bool = True) -> None:
        self._capability, self._architectures, self._available = capability, architectures, available

    def is_available(self) -> bool:
        return self._available

    def device_count(self) -> int:
        return 1

    def get_device_properties(self, number: int) -> Any:
        major, minor = self._capability
        return SimpleNamespace(name="Fast 9000", total_memory=80 << 30, major=major, minor=minor)

    def get_arch_list(self) -> list[str]:
        return self._architectures


def on(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, cuda: FakeCuda, **model: Any) -> Any:
    import torch

    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13020, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    settings = recipe.model.model_copy(update={"device": "auto", **model})
    (found,) = gpu(Subject(recipe.model_copy(update={"model": settings})))
    return found


def test_a_gpu_is_named_with_its_memory_cuda_and_driver(
    monkeypatch: pytest.MonkeyPatch, micro_settings: Recipe, tmp_path: Path
) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  595.71.05  Release Build\n")
    monkeypatch.setattr(gpu_checks, "DRIVER", driver)
    found = on(monkeypatch, micro_settings, FakeCuda((9, 0), ["sm_80", "sm_90"]))
    assert found.held
    assert found.detail == "Fast 9000, 80.0 GiB, CUDA 13.0, driver for CUDA 13.2 (595.71.05)"


def test_a_build_that_does_not_fit_the_gpu(monkeypatch: pytest.MonkeyPatch, micro_settings: Recipe) -> None:
    found = on(monkeypatch, micro_settings, FakeCuda((7, 0), ["sm_80", "sm_90"]))
    assert not found.held
    assert "no code for its architecture sm_70" in found.detail
    assert "model.device=cpu" in found.todo
    slow = on(monkeypatch, micro_settings, FakeCuda((7, 5), ["sm_70"]), dtype="bfloat16")
    assert slow.is_warning
    assert "model.dtype=float32" in slow.todo


def test_a_gpu_that_is_asked_for_and_missing(
    monkeypatch: pytest.MonkeyPatch, micro_settings: Recipe, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_checks, "DRIVER", tmp_path / "none")
    missing = FakeCuda((0, 0), [], available=False)
    assert on(monkeypatch, micro_settings, missing).held
    failed = on(monkeypatch, micro_settings, missing, device="cuda")
    assert (failed.held, failed.todo) == (False, "set model.device=cpu")
    (tmp_path / "driver").write_text("NVRM\n")
    monkeypatch.setattr(gpu_checks, "DRIVER", tmp_path / "driver")
    unused = on(monkeypatch, micro_settings, missing)
    assert unused.is_warning
    assert "the run would be on the CPU" in unused.detail


@pytest.mark.parametrize(
    ("capability", "architectures", "fits"),
    [
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_90a"], True),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((12, 0), ["sm_90"], False),
        ((10, 0), ["sm_100"], True),
        ((8, 0), [], False),
    ],
)
def test_which_builds_run_on_which_gpus(
    capability: tuple[int, int], architectures: list[str], fits: bool
) -> None:
    assert runs_on(capability, architectures) is fits
