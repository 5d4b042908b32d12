"""Room on the disk and in memory: what a run needs, by hand, and what a machine has."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sdzero import tiny
from sdzero.errors import UserError
from sdzero.onprem import room as rooms
from sdzero.onprem.findings import Subject
from sdzero.onprem.model_checks import missing_weights
from sdzero.onprem.room import (
    Need,
    available_memory,
    disk_finding,
    memory_finding,
    need_of,
    parameters_of,
    room,
    weights_of,
)
from sdzero.recipe import Recipe
from sdzero.recipe_lora import LoraSettings


def with_keys(recipe: Recipe, section: str, **keys: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=keys)})


def test_parameters_are_read_off_the_headers() -> None:
    card = (tiny.model_folder().parent / "README.md").read_text()
    count = parameters_of([tiny.model_folder() / "model.safetensors"])
    assert f"| parameters | {count:,} |" in card


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{"])
def test_weights_without_a_header_are_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match="the weights cannot be read") as error:
        parameters_of([file])
    assert error.value.where == str(file)


@pytest.mark.parametrize("change", [-1, 1])
def test_weights_of_another_length_than_their_header_says_are_named(tmp_path: Path, change: int) -> None:
    file = Path(shutil.copy(tiny.model_folder() / "model.safetensors", tmp_path))
    file.chmod(0o644)
    os.truncate(file, file.stat().st_size + change)
    with pytest.raises(UserError, match="by its header"):
        parameters_of([file])


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": 1, "b": "c"}}'])
def test_an_index_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(UserError, match="index of the weights") as error:
        weights_of(tmp_path)
    assert error.value.where == str(index)
    with pytest.raises(UserError, match="index of the weights"):
        missing_weights(tmp_path)


def test_what_a_run_needs(micro_settings: Recipe) -> None:
    recipe = with_keys(micro_settings, "distill", checkpoints_kept=2, sync="never", sync_every=None)
    # SRT, phase 2 and RFT keep a model of 4 bytes a parameter; 2 checkpoints, one being written and two of
    # the alarms have the student and two moments. In memory: student, gradients, two moments, teacher.
    assert need_of(recipe, 1_000, on_gpu=False) == Need(12_000, 5 * 3 * 4_000, 5 * 4_000)
    synced = with_keys(recipe, "distill", sync="epoch")
    assert need_of(synced, 1_000, on_gpu=False).checkpoints == 5 * 4 * 4_000, "the teacher is in it too"
    kept = with_keys(synced, "distill", checkpoints_kept=9)
    assert need_of(kept, 1_000, on_gpu=False).checkpoints == 12 * 4 * 4_000
    assert need_of(recipe, 1_000, on_gpu=True).memory == 4_000
    short = with_keys(with_keys(recipe, "alarms", enabled=False), "model", dtype="bfloat16")
    assert need_of(short, 1_000, on_gpu=False) == Need(6_000, 3 * 3 * 2_000, 10_000)


def test_adapters_need_little(micro_settings: Recipe) -> None:
    adapted = micro_settings.model_copy(update={"lora": LoraSettings(keep="adapter")})
    assert need_of(adapted, 1_000, on_gpu=False) == Need(0, 0, 4_000)
    merged = micro_settings.model_copy(update={"lora": LoraSettings(keep="merged", teacher="copy")})
    assert need_of(merged, 1_000, on_gpu=False) == Need(12_000, 0, 8_000)
    quantized = with_keys(adapted, "model", quantization="4bit")
    assert need_of(quantized, 1_000, on_gpu=False).memory == 500


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    fits = disk_finding(Need(1 << 20, 1 << 20, 0), tmp_path / "not" / "there" / "yet")
    assert fits.held
    assert str(tmp_path) in fits.detail
    assert "2.0 MiB (1.0 MiB stay)" in fits.detail
    full = disk_finding(Need(free, 1 << 40, 0), tmp_path)
    assert not full.held
    assert "free some room" in full.todo


def test_memory_that_is_too_small() -> None:
    assert memory_finding(1 << 30, 2 << 30, 7).detail.startswith("2.0 GiB free; a model of 7 parameters")
    failed = memory_finding(3 << 30, 2 << 30, 7)
    assert not failed.held
    assert "LoRA" in failed.todo
    assert memory_finding(1, None, 7).held


def test_memory_is_the_kernels_figure_or_less_in_a_control_group(tmp_path: Path) -> None:
    info, group = tmp_path / "meminfo", tmp_path / "cgroup"
    info.write_text("MemTotal:  9000 kB\nMemAvailable:    4000 kB\n")
    assert available_memory(info, group) == 4_000 * 1024
    group.mkdir()
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("700000\n")
    assert available_memory(info, group) == 4_000 * 1024
    (group / "memory.max").write_text("1000000\n")
    assert available_memory(info, group) == 300_000
    (group / "memory.stat").write_text("anon 5\ninactive_file 100000\n")
    assert available_memory(info, group) == 400_000, "pages of files are given up"
    assert available_memory(tmp_path / "none", tmp_path / "none") is None


def test_an_adapters_folder_stands_for_the_whole_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "tiny"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert [file.name for file in weights_of(tmp_path)] == ["adapter_model.safetensors", "model.safetensors"]


def test_weights_are_those_of_the_index(tmp_path: Path) -> None:
    index = {
        "weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-1.safetensors"}
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "consolidated.safetensors").write_bytes(b"")
    assert [file.name for file in weights_of(tmp_path)] == ["model-1.safetensors", "model-2.safetensors"]


def test_both_are_looked_at_with_a_recipe(
    micro_settings: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "available_memory", lambda: 1 << 20)
    disk, memory = room(Subject(micro_settings, folder=tmp_path))
    assert (disk.name, disk.held, memory.name, memory.held) == ("disk", True, "memory", False)
    assert [*room(Subject()), *room(Subject(micro_settings, failed={"model"}))] == []
